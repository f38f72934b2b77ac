"""The program that changes policy: one process a region, apart from the hot path."""
