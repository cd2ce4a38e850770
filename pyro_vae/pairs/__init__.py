"""A model and a guide, run: isolated, placed, with their parameters."""
