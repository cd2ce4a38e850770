"""Pyro's own loop, faster: ``SVI`` with a captured step."""
