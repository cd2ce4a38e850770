"""What people see: figures, and the page of a run."""
