import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import pyro_vae
from pyro_vae import data, models
from pyro_vae.data import DataSet, DynamicBinarization, binarize, split, standardize


def ramp(n=10, features=4, **kwargs):
    x = np.arange(n * features, dtype=np.float32).reshape(n, features)
    return DataSet("ramp", x, np.arange(n), **kwargs)


def test_digits_are_what_scikit_learn_has():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    assert digits.x.dtype == np.float32
    np.testing.assert_array_equal(digits.images[:, 0], load_digits().images)
    np.testing.assert_array_equal(digits.y, load_digits().target)
    assert (digits.likelihood, digits.likelihood_args, len(digits)) == ("binomial", {"total_count": 16}, 1797)


@pytest.mark.parametrize("name", models.likelihoods.names())
def test_digits_are_written_as_the_likelihood_wants_them(name):
    digits = data.load("digits", likelihood=name)
    likelihood = models.likelihoods.get(digits.likelihood, **digits.likelihood_args)
    likelihood.check(torch.from_numpy(digits.x))
    highest = {"binomial": 16, "categorical": 16, "negative-binomial": 16, "poisson": 16}.get(name, 1)
    assert digits.x.max() == highest


def test_public_face():
    assert pyro_vae.data is data
    assert data.names() == ["digits", "mnist", "fashion-mnist", "kmnist"]


def test_split_is_a_seeded_partition():
    train, test = split(ramp(), 0.3, seed=4)
    assert (len(train), len(test)) == (7, 3)
    rows = np.sort(np.concatenate([train.y, test.y]))
    np.testing.assert_array_equal(rows, np.arange(10))
    for part in (train, test):
        np.testing.assert_array_equal(part.x, ramp().x[part.y])
        assert (np.diff(part.y) > 0).all()
    again = split(ramp(), 3, seed=4)
    np.testing.assert_array_equal(again[1].y, test.y)
    assert any((split(ramp(), 3, seed=s)[1].y != test.y).any() for s in range(5))


@pytest.mark.parametrize("held_out", [0, 0.0, 1.0, 10, 0.01])
def test_split_leaves_no_part_empty(held_out):
    with pytest.raises(ValueError, match=f"held_out is {held_out}, which of 10 rows"):
        split(ramp(), held_out)


def test_standardize_by_own_or_by_training_rows():
    train, test = split(ramp(), 0.3)
    ours = standardize(train)
    np.testing.assert_allclose(ours.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(ours.x.std(0), 1, rtol=1e-6)
    held_out = standardize(test, like=train)
    expected = (test.x - train.x.mean(0)) / train.x.std(0)
    np.testing.assert_allclose(held_out.x, expected, rtol=1e-6)
    assert held_out.x.dtype == np.float32
    constant = dataclasses.replace(ramp(), x=np.ones((10, 4), np.float32), columns=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="ramp is constant in column 'a'"):
        standardize(constant)


def test_images():
    assert ramp(image_shape=(2, 2)).images.shape == (10, 1, 2, 2)
    assert ramp(image_shape=(1, 4, 1)).images.shape == (10, 1, 4, 1)
    with pytest.raises(ValueError, match="ramp has no image_shape"):
        _ = ramp().images


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": np.zeros(3, np.float32)}, r"x has shape \(3,\)"),
        ({"y": np.zeros(3)}, "3 labels for 10 observations"),
        ({"image_shape": (3, 2)}, r"image_shape is \(3, 2\), which does not hold 4"),
    ],
)
def test_a_data_set_is_consistent(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(ramp(), **change)


def test_binarize_draws_with_the_intensity_as_probability():
    intensities = np.repeat(np.array([[0.0, 0.2, 0.7, 1.0]], np.float32), 20_000, axis=0)
    binary = binarize(intensities, seed=1)
    assert set(np.unique(binary)) == {0.0, 1.0}
    np.testing.assert_allclose(binary.mean(0), intensities[0], atol=0.015)
    np.testing.assert_array_equal(binarize(intensities, seed=1), binary)
    assert (binarize(intensities, seed=2) != binary).any()
    with pytest.raises(ValueError, match=r"intensities holds 255 at index \(0, 1\)"):
        binarize(np.array([[0.0, 255.0]]))


def test_dynamic_binarization_draws_each_pixel_with_its_intensity():
    intensities = torch.tensor([0.0, 0.3, 0.9, 1.0])
    draws = torch.stack([DynamicBinarization.draw(intensities) for _ in range(4000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    errors = 4 * (intensities * (1 - intensities) / 4000).sqrt()
    assert ((draws.mean(0) - intensities).abs() <= errors).all()
    with pytest.raises(ValueError, match="index"):
        DynamicBinarization(torch.tensor([[float("nan")]]))


def test_dynamic_binarization_is_a_torch_dataset():
    dynamic = DynamicBinarization(np.full((8, 3), 0.5, np.float32))
    first, second = (torch.cat(list(DataLoader(dynamic, batch_size=4))) for _ in range(2))
    assert first.shape == (8, 3)
    assert (first != second).any()
    assert dynamic[[0, 5]].shape == (2, 3)
