"""``python -m pyro_vae`` is the ``pyro-vae`` command."""

from pyro_vae.cli import main

main()
