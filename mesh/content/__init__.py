"""What a person wrote or a model answered, and the little that may be known of it. Fenced: see the import contracts."""
