"""Convolutional encoders and decoders for images of any size."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.arguments import brief, positive_integer, positive_integers
from pyro_vae.models.conditional import over_leading_dims
from pyro_vae.models.networks import Activation, as_shape, make_activation, set_bias


def _as_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = as_shape(shape, "image_shape")
    if len(sizes) != 3:
        raise ValueError(f"image_shape is {brief(shape)}; give (channels, height, width)")
    return sizes[0], sizes[1], sizes[2]


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
    >>> import torch
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
            layers += [
                nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1),
                make_activation(activation),
            ]
        area = _halved_sizes(height, len(channels))[-1] * _halved_sizes(width, len(channels))[-1]
        n_last = [n_channels, *channels][-1]
        layers += [nn.Flatten(), nn.Linear(n_last * area, out_features), make_activation(activation)]
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
    >>> import torch
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
                make_activation(activation),
                nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=padding),
            ]
        *before, self.output = layers
        self.layers = nn.Sequential(*before)

    def set_output_bias(self, output: Tensor) -> None:
        """Start from a constant output per channel: the mean of an image's outputs over its pixels."""
        set_bias(self.output, output.mean((-2, -1)))

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (..., channels × outputs, height, width) of latents (..., latent_dim)."""
        return over_leading_dims(lambda flat: self.output(self.layers(flat)), z)
