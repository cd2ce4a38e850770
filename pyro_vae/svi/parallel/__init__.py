"""Spread a fit over many processes."""
