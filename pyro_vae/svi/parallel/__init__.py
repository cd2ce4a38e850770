"""A fit on many processes."""
