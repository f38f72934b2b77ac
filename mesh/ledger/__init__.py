"""A region's database of metadata. It never leaves the region, and never holds content."""
