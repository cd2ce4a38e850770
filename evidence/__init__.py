"""Does the parameterization of σ matter? Eight experiments that answer it, one file each.

``make evidence`` runs them into evidence/results/ (tables) and evidence/figures/ (pictures), and writes the
tables of docs/why_log_variance.md anew from them.
"""
