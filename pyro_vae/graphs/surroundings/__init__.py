"""The places around a program where its values lie: globals, closures, attributes, entries."""

from pyro_vae.graphs.surroundings.named import is_of_user
from pyro_vae.graphs.surroundings.place import MISSING, Numbers, Place, code_of
from pyro_vae.graphs.surroundings.walk import places_around

__all__ = ["MISSING", "Numbers", "Place", "code_of", "is_of_user", "places_around"]
