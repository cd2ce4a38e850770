"""Which version this is: here once, for the package, its metadata and what it writes."""

__version__ = "0.2.0"
