"""Encoders and decoders: fully connected and convolutional networks of the usual make."""

__all__ = ["MLPDecoder", "MLPEncoder"]

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def _layers(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers with the activation after each."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class MLPEncoder(nn.Module):
    """Features of an observation: linear layers, each followed by the activation.

    Parameters
    ----------
    in_features
        Size of one observation, or its shape (channels, height, width), which is flattened.
    hidden
        Sizes of the layers; the last one is the number of features a guide's heads see.
    activation
        "relu", "tanh", "softplus", "elu", "gelu", "silu" or "leaky_relu".

    Attributes
    ----------
    out_features : int
        Size of what comes out, ``hidden[-1]``.
    """

    def __init__(
        self, in_features: int | Sequence[int], hidden: Sequence[int], *, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.in_shape = (in_features,) if isinstance(in_features, int) else tuple(in_features)
        self.out_features = hidden[-1]
        self.layers = _layers([math.prod(self.in_shape), *hidden], activation)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., hidden[-1]) of observations (..., \\*shape)."""
        features: Tensor = self.layers(x.flatten(-len(self.in_shape)))
        return features


class MLPDecoder(nn.Module):
    """Outputs per feature from a latent: linear layers with activations, then one linear layer.

    Parameters
    ----------
    latent_dim
        Size of the latent.
    hidden
        Sizes of the hidden layers.
    out_features
        Size of one observation, or its shape (channels, height, width).
    outputs
        Numbers per feature that the likelihood needs (``likelihood.outputs``).
    activation
        As for `MLPEncoder`.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int],
        out_features: int | Sequence[int],
        *,
        outputs: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        first, *rest = (out_features,) if isinstance(out_features, int) else tuple(out_features)
        self.out_shape = (first * outputs, *rest)
        self.layers = _layers([latent_dim, *hidden], activation)
        self.output = nn.Linear([latent_dim, *hidden][-1], math.prod(self.out_shape))

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (..., \\*shape) of latents (..., latent_dim)."""
        output: Tensor = self.output(self.layers(z))
        return output.unflatten(-1, self.out_shape) if len(self.out_shape) > 1 else output
