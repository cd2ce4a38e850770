"""What is maximized."""
