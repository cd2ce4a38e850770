"""Take the steps of a fit."""
