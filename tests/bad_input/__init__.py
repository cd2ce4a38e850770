"""Wrong input, in tables: whatever is wrong, the error names the argument and says what to do."""
