"""Variational autoencoder guides, SVI and posterior diagnostics for Pyro."""

__version__ = "0.1.0"
