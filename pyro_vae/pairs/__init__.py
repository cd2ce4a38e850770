"""Run a model and a guide: isolated, placed, with their parameters."""
