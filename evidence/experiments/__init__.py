"""The experiments, one question each; :mod:`evidence.run` runs them in order."""
