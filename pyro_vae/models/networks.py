"""Encoders and decoders of the usual make: fully connected and convolutional.

Encoders give features, on which a guide puts its own heads; decoders give the outputs that a likelihood
needs. Both take any leading dimensions (particles, draws, batch). Layers start as PyTorch starts them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer, positive_integers
from pyro_vae.models.conditional import over_leading_dims

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


def _activation(activation: Activation) -> nn.Module:
    if callable(activation) and not isinstance(activation, nn.Module):
        return activation()
    if not isinstance(activation, str):
        raise TypeError(f"activation is {activation!r}; give a name, or a function that makes a module")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}, "
            "or a function that makes a module."
        )
    return ACTIVATIONS[activation]()


def _linear_layers(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    """Linear layers between the sizes, each followed by the activation."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), _activation(activation)]
    return nn.Sequential(*layers)


def _as_shape(shape: int | Sequence[int], name: str) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else shape
    try:
        checked = positive_integers(name, sizes)
    except ValueError:
        checked = ()
    if not checked:
        raise ValueError(f"{name} is {shape!r}; give a size or a shape, of positive integers")
    return checked


def _as_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = _as_shape(shape, "image_shape")
    if len(sizes) != 3:
        raise ValueError(f"image_shape is {shape!r}; give (channels, height, width)")
    return sizes[0], sizes[1], sizes[2]


@runtime_checkable
class HasOutputBias(Protocol):
    """A decoder that can be told where its output starts."""

    def set_output_bias(self, output: Tensor) -> None:
        """Start from a constant output, of the shape of one observation's outputs."""
        ...


@torch.no_grad()
def _set_bias(layer: nn.Module, bias: Tensor) -> None:
    assert isinstance(layer.bias, Tensor)
    if bias.shape != layer.bias.shape:
        raise ValueError(
            f"output has {bias.numel()} numbers for a bias, and one observation has {layer.bias.numel()} numbers."
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
        self.in_shape = _as_shape(in_features, "in_features")
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
        first, *rest = _as_shape(out_features, "out_features")
        self.out_shape = (first * positive_integer("outputs", outputs), *rest)
        sizes = [positive_integer("latent_dim", latent_dim), *positive_integers("hidden", hidden)]
        self.layers = _linear_layers(sizes, activation)
        self.output = nn.Linear(sizes[-1], math.prod(self.out_shape))

    def set_output_bias(self, output: Tensor) -> None:
        """Start from a constant output, of the shape of one observation's outputs."""
        _set_bias(self.output, output.flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (..., *out_features), the first of them times ``outputs``, of latents (..., latent_dim)."""
        output: Tensor = self.output(self.layers(z))
        return output if len(self.out_shape) == 1 else output.unflatten(-1, self.out_shape)


def _halved_sizes(size: int, times: int) -> list[int]:
    """Lengths of an axis before and after each convolution of stride 2."""
    return list(itertools.accumulate(range(times), lambda length, _: (length + 1) // 2, initial=size))


class ConvEncoder(nn.Module):
    """Features of an image: convolutions of stride 2, each followed by the activation, and a linear layer.

    Images may have any size, odd or not square: each convolution halves height and width, rounding up.

    Parameters
    ----------
    image_shape
        (channels, height, width).
    channels
        Of each convolution.
    out_features
        Number of features H.
    activation
        As for `MLPEncoder`.

    Examples
    --------
    >>> ConvEncoder((1, 28, 28), [16, 32], 64)(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        out_features: int,
        *,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.image_shape = n_channels, height, width = _as_image_shape(image_shape)
        self.out_features = positive_integer("out_features", out_features)
        channels = positive_integers("channels", channels)
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise([n_channels, *channels]):
            layers += [nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1), _activation(activation)]
        area = _halved_sizes(height, len(channels))[-1] * _halved_sizes(width, len(channels))[-1]
        n_last = [n_channels, *channels][-1]
        layers += [nn.Flatten(), nn.Linear(n_last * area, out_features), _activation(activation)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., H) of images (..., channels, height, width)."""
        if x.shape[-3:] != self.image_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but this encoder takes images "
                f"(..., {', '.join(map(str, self.image_shape))})."
            )
        return over_leading_dims(self.layers, x, event_dim=3)


class ConvDecoder(nn.Module):
    """Outputs for an image: a linear layer and transposed convolutions, the mirror image of `ConvEncoder`.

    Parameters
    ----------
    latent_dim
        Size of z.
    channels
        Of each feature map, from the smallest to the largest image: those of the encoder, reversed.
    image_shape
        (channels, height, width) of one observation, of any size.
    outputs
        Outputs per pixel and channel that the likelihood needs, ``likelihood.outputs``.
    activation
        As for `MLPEncoder`.

    Examples
    --------
    >>> ConvDecoder(2, [32, 16], (1, 28, 28))(torch.zeros(7, 5, 2)).shape
    torch.Size([7, 5, 1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        channels: Sequence[int],
        image_shape: Sequence[int],
        *,
        outputs: int = 1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        n_channels, height, width = _as_image_shape(image_shape)
        if not channels:
            raise ValueError(
                "channels is empty: ConvDecoder needs at least one feature map, or use MLPDecoder."
            )
        channels = positive_integers("channels", channels)
        positive_integer("latent_dim", latent_dim)
        positive_integer("outputs", outputs)
        heights = _halved_sizes(height, len(channels))[::-1]
        widths = _halved_sizes(width, len(channels))[::-1]
        small = (channels[0], heights[0], widths[0])
        layers: list[nn.Module] = [nn.Linear(latent_dim, math.prod(small)), nn.Unflatten(1, small)]
        for i, (n_in, n_out) in enumerate(itertools.pairwise([*channels, n_channels * outputs])):
            # a row of length n came from 2n − 1 or from 2n: padding the output by 0 or 1 gives back which
            padding = heights[i + 1] - 2 * heights[i] + 1, widths[i + 1] - 2 * widths[i] + 1
            layers += [
                _activation(activation),
                nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=padding),
            ]
        *before, self.output = layers
        self.layers = nn.Sequential(*before)

    def set_output_bias(self, output: Tensor) -> None:
        """Start from a constant output per channel: the mean of an image's outputs over its pixels."""
        _set_bias(self.output, output.mean((-2, -1)))

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (..., channels × outputs, height, width) of latents (..., latent_dim)."""
        return over_leading_dims(lambda flat: self.output(self.layers(flat)), z)
