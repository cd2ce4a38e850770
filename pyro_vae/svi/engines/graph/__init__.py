"""The graph of a step that Pyro leaves behind."""
