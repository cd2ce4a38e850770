"""Keep a fit on disk, to load or to resume."""
