"""Fully connected encoders and decoders.

Encoders return features, on which a guide puts its own heads; decoders return the outputs that a likelihood
needs. Both take any leading dimensions (particles, draws, batch). Layers start as PyTorch starts them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_vae.arguments import brief, positive_integer, positive_integers

Activation = str | Callable[[], nn.Module]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky-relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def make_activation(activation: Activation) -> nn.Module:
    """Make the module of an activation."""
    if callable(activation) and not isinstance(activation, nn.Module):
        return activation()
    if not isinstance(activation, str):
        raise TypeError(f"activation is {brief(activation)}; give a name, or a function that makes a module")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {brief(activation)}; give one of {', '.join(ACTIVATIONS)}, "
            "or a function that makes a module."
        )
    return ACTIVATIONS[activation]()


def _linear_layers(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    """Linear layers between the sizes, each followed by the activation."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), make_activation(activation)]
    return nn.Sequential(*layers)


def as_shape(shape: int | Sequence[int], name: str) -> tuple[int, ...]:
    """The shape of one observation, or a ValueError that names it."""
    sizes = (shape,) if isinstance(shape, int) else shape
    try:
        checked = positive_integers(name, sizes)
    except ValueError:
        checked = ()
    if not checked:
        raise ValueError(f"{name} is {brief(shape)}; give a size or a shape, of positive integers")
    return checked


@runtime_checkable
class HasOutputBias(Protocol):
    """A decoder that can be told where its output starts."""

    def set_output_bias(self, output: Tensor) -> None:
        """Start from a constant output, of the shape of one observation's outputs."""
        ...


@torch.no_grad()
def set_bias(layer: nn.Module, bias: Tensor) -> None:
    """Start a layer from this bias."""
    assert isinstance(layer.bias, Tensor)
    if bias.shape != layer.bias.shape:
        raise ValueError(
            f"output has {bias.numel()} numbers for a bias; give the {layer.bias.numel()} numbers of "
            "one observation"
        )
    layer.bias.copy_(bias)


class Standardize(nn.Module):
    """Features in units of their own mean and standard deviation, as buffers: a first layer for an encoder.

    A feature that hardly varies is divided by a tenth of what features vary on the root mean square, so that
    one rare value of it does not outshout the rest.

    Parameters
    ----------
    x
        Data (n, features...), from which both are taken.

    Examples
    --------
    >>> layer = Standardize(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> layer(torch.tensor([[1.0, 5.0]]))
    tensor([[-1.,  0.]])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        spread, loc = torch.var_mean(x.double(), 0, correction=0)
        floor = 0.1 * spread.mean().sqrt()
        scale = torch.maximum(spread.sqrt(), floor).where(floor > 0, torch.ones(()).double())
        like = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        self.register_buffer("loc", loc.to(like))
        self.register_buffer("scale", scale.to(like))

    def forward(self, x: Tensor) -> Tensor:
        """(x − loc) / scale."""
        return (x - self.loc) / self.scale


class MLPEncoder(nn.Module):
    """Features of an observation: linear layers, each followed by the activation.

    Parameters
    ----------
    in_features
        Size of one observation, or its shape such as (channels, height, width), which is flattened.
    hidden
        Sizes of the layers; the last is the number of features. Without layers the features are the flat
        observation itself, which makes a guide's heads a linear encoder.
    activation
        "relu", "tanh", "softplus", "elu", "gelu", "silu", "leaky-relu", "sigmoid", or a function that makes
        a module.

    Attributes
    ----------
    out_features : int
        Number of features H.

    Examples
    --------
    >>> MLPEncoder(64, [32, 16], activation="tanh")(torch.zeros(5, 64)).shape
    torch.Size([5, 16])
    """

    def __init__(
        self, in_features: int | Sequence[int], hidden: Sequence[int], *, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_features, "in_features")
        sizes = [math.prod(self.in_shape), *positive_integers("hidden", hidden)]
        self.out_features = sizes[-1]
        self.layers = _linear_layers(sizes, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., H) of observations (..., *in_features)."""
        if x.shape[-len(self.in_shape) :] != self.in_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but this encoder takes "
                f"(..., {', '.join(map(str, self.in_shape))})."
            )
        features: Tensor = self.layers(x.flatten(-len(self.in_shape)))
        return features


class MLPDecoder(nn.Module):
    """Outputs for an observation: linear layers, each followed by the activation, and a last linear layer.

    Parameters
    ----------
    latent_dim
        Size of z.
    hidden
        Sizes of the layers before the last; without any the decoder is linear.
    out_features
        Size of one observation, or its shape such as (channels, height, width).
    outputs
        Outputs per feature that the likelihood needs, ``likelihood.outputs``.
    activation
        As for `MLPEncoder`.

    Examples
    --------
    >>> MLPDecoder(2, [16, 32], 64)(torch.zeros(7, 5, 2)).shape
    torch.Size([7, 5, 64])
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int],
        out_features: int | Sequence[int],
        *,
        outputs: int = 1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        first, *rest = as_shape(out_features, "out_features")
        self.out_shape = (first * positive_integer("outputs", outputs), *rest)
        sizes = [positive_integer("latent_dim", latent_dim), *positive_integers("hidden", hidden)]
        self.layers = _linear_layers(sizes, activation)
        self.output = nn.Linear(sizes[-1], math.prod(self.out_shape))

    def set_output_bias(self, output: Tensor) -> None:
        """Start from a constant output, of the shape of one observation's outputs."""
        set_bias(self.output, output.flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (..., *out_features), the first of them times ``outputs``, of latents (..., latent_dim)."""
        output: Tensor = self.output(self.layers(z))
        return output if len(self.out_shape) == 1 else output.unflatten(-1, self.out_shape)
