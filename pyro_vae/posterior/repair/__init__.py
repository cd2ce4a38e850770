"""What to do where k̂ says no."""
