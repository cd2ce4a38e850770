"""The ``pyro-vae`` command."""

from pyro_vae.cli.commands import app, main

__all__ = ["app", "main"]
