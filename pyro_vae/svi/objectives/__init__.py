"""What a fit minimizes: one file for each objective."""
