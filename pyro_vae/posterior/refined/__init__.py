"""Refined posteriors: a Normal of its own for each observation, and the evidence around it."""
