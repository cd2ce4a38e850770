"""The latents of a model, for guides: where they sit, which values they take, what hides them."""
