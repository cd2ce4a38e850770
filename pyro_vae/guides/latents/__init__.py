"""The latents of a model, for guides: where they sit, which values they take, what hides them."""


class LatentError(ValueError):
    """The model's latents are none that a guide serves; the message says which, and what to do."""
