"""Evaluate a user's pair: made ready, drawn from, its densities read block by block."""
