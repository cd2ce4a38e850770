"""Keep files that survive: written whole or not at all, checked before they are believed, one writer at a
time."""
