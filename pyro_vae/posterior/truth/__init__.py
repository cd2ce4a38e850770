"""Find what the posterior really is, and how far a guide is from it."""
