"""Everything that takes steps."""
