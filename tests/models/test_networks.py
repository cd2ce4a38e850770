import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from pyro_vae.models import Conditional, ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from pyro_vae.models.conditional import over_leading_dims

IMAGE_SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 7, 13), (1, 1, 5), (1, 1, 1)]
DECODERS = {
    "linear": lambda outputs: MLPDecoder(3, [], 6, outputs=outputs),
    "mlp": lambda outputs: MLPDecoder(3, [5, 4], 6, outputs=outputs, activation="tanh"),
    "mlp image": lambda outputs: MLPDecoder(3, [5], (2, 3, 5), outputs=outputs),
    "conv": lambda outputs: ConvDecoder(3, [6, 4], (2, 7, 13), outputs=outputs),
    "conv one layer": lambda outputs: ConvDecoder(3, [6], (1, 8, 8), outputs=outputs, activation="elu"),
}


@pytest.mark.parametrize("leading", [(), (4,), (2, 4), (5, 1, 4)])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
def test_decoders_under_any_leading_dimensions(make, outputs, leading):
    decoder = make(outputs)
    z = torch.randn(*leading, 3)
    expected = torch.stack([decoder(row[None])[0] for row in z.reshape(-1, 3)])
    assert_close(decoder(z), expected.reshape(*leading, *expected.shape[1:]))
    # and through the model, where a decoder need not know of them
    conditional = Conditional(nn.Sequential(decoder), 3, "bernoulli")
    assert_close(conditional(z).base_dist.logits, expected.reshape(*leading, *expected.shape[1:]))


@pytest.mark.parametrize("leading", [(), (4,), (2, 4)])
@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (lambda: MLPEncoder(12, [5, 7]), (12,)),
        (lambda: MLPEncoder((1, 3, 4), [5, 7]), (1, 3, 4)),
        (lambda: ConvEncoder((2, 9, 6), [4, 5], 7), (2, 9, 6)),
    ],
)
def test_encoders_under_any_leading_dimensions(encoder, shape, leading):
    encoder = encoder()
    x = torch.randn(*leading, *shape)
    expected = torch.cat([encoder(row[None]) for row in x.reshape(-1, *shape)])
    assert_close(encoder(x), expected.reshape(*leading, 7))
    assert encoder.out_features == 7


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("shape", IMAGE_SHAPES)
def test_convolutions_fit_any_image_size(shape, depth):
    channels = [4, 3, 2, 2][:depth]
    features = ConvEncoder(shape, channels, 8)(torch.randn(2, *shape))
    assert features.shape == (2, 8)
    assert ConvDecoder(8, channels[::-1], shape, outputs=2)(features).shape == (2, 2 * shape[0], *shape[1:])


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("elu", functional.elu),
        ("gelu", functional.gelu),
        ("leaky-relu", functional.leaky_relu),
        ("relu", functional.relu),
        ("sigmoid", torch.sigmoid),
        ("silu", functional.silu),
        ("softplus", functional.softplus),
        ("tanh", torch.tanh),
        (nn.Mish, functional.mish),
    ],
)
def test_activations(name, function):
    encoder, x = MLPEncoder(4, [3], activation=name), torch.randn(5, 4)
    assert_close(encoder(x), function(encoder.layers[0](x)))


def test_an_encoder_without_layers_hands_on_the_observation():
    x = torch.randn(5, 4)
    assert_close(MLPEncoder(4, [])(x), x)
    assert MLPEncoder(4, []).out_features == 4


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
def test_output_bias_sets_the_output_where_weights_are_zero(make):
    decoder = make(1)
    shape = decoder(torch.zeros(1, 3)).shape[1:]
    channel = torch.randn(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    nn.init.zeros_(decoder.output.weight)
    decoder.set_output_bias(channel.expand(shape))
    assert_close(decoder(torch.randn(2, 3)), channel.expand(2, *shape))


def test_over_leading_dims_keeps_gradients_apart():
    z = torch.randn(2, 3, 4, requires_grad=True)
    layer = nn.Linear(4, 1)
    (gradient,) = torch.autograd.grad(over_leading_dims(layer, z)[1, 2].sum(), z)
    assert_close(gradient[1, 2], layer.weight[0])
    assert gradient.count_nonzero() == 4


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MLPEncoder(4, [3], activation="rleu"), "^activation is 'rleu'; give"),
        (lambda: MLPEncoder((1, 0), [3]), "in_features"),
        (lambda: MLPDecoder(2, [3], ()), "out_features"),
        (lambda: ConvEncoder((28, 28), [3], 4), "image_shape"),
        (lambda: ConvDecoder(2, [], (1, 28, 28)), "channels is empty"),
    ],
)
def test_wrong_arguments_are_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
