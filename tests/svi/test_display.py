"""What people see of a fit: its figure and its table."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from pyro_vae import guides, models
from pyro_vae.svi import Fit, fit
from pyro_vae.svi.display import epoch_losses, html_table, loss_figure
from tests import seeds


def history_of(loss: list[float], epoch_step: list[int], validation: list[float]) -> xr.Dataset:
    return xr.Dataset(
        {"loss": ("step", loss), "validation": ("epoch", validation)},
        {"step": np.arange(1, len(loss) + 1), "epoch_step": ("epoch", epoch_step)},
    )


@pytest.fixture
def fitted() -> Fit:
    x = torch.randn(32, 5, generator=seeds.generator(0))
    model = models.VAE(nn.Linear(2, 5), 2, "normal")
    guide = guides.AmortizedNormal(model, nn.Linear(5, 8))
    return fit(model, guide, x, epochs=3, batch_size=16, validation=x[:8], progress=False)


def test_an_epoch_is_the_mean_of_its_finite_steps() -> None:
    history = history_of([1.0, 3.0, math.nan, 5.0, math.nan], [2, 4, 5], [math.nan] * 3)
    np.testing.assert_array_equal(epoch_losses(history), [2.0, 5.0, math.nan])


def test_the_figure_shows_steps_epochs_and_held_out_data_with_units(fitted: Fit) -> None:
    (axes,) = fitted.plot().axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss (nats per observation)")
    assert axes.get_title() == "AmortizedNormal for VAE"
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(lines) == ["each step", "mean of the epoch", "held out"]
    np.testing.assert_array_equal(lines["each step"], fitted.history["loss"])
    np.testing.assert_array_equal(lines["held out"], fitted.history["validation"])


def test_without_validation_nothing_is_called_held_out() -> None:
    figure = loss_figure(history_of([2.0, 1.0], [2], [math.nan]), "a fit")
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["each step", "mean of the epoch"]


def test_the_axis_is_not_flattened_by_the_start() -> None:
    figure = loss_figure(history_of([1e6, *np.linspace(2, 1, 39)], [40], [math.nan]), "a fit")
    assert figure.axes[0].get_ylim()[1] < 10


def test_a_notebook_shows_what_was_fitted(fitted: Fit) -> None:
    shown = fitted._repr_html_()
    for part in ("AmortizedNormal for VAE", "6 in 3 epochs", "held-out loss", "nats per observation", "cpu"):
        assert part in shown


def test_names_cannot_smuggle_markup_into_a_notebook() -> None:
    assert "<script>" not in html_table("<script>", {"<script>": "<script>"})


def test_a_pair_of_functions_is_called_by_their_names() -> None:
    import pyro
    import pyro.distributions as dist

    def regression(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def narrow(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.1))

    fitted = fit(regression, narrow, torch.zeros(4), epochs=1, progress=False)
    assert fitted.plot().axes[0].get_title() == "narrow for regression"
