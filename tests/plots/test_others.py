"""The figures of belief, σ and latent space: what is drawn, and that nothing is cut off."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

from pyro_vae.plots import (
    plot_calibration,
    plot_gaps,
    plot_latents,
    plot_samples,
    plot_scale_history,
    plot_scales,
    plot_traversal,
    plot_units,
)
from pyro_vae.plots.reference import MOST_LATENTS, plot_reference
from pyro_vae.plots.style import guide_colors
from tests.plots.test_evidence import assert_whole, texts

pytestmark = pytest.mark.arviz

GUIDES = ("logvar", "softplus")
RNG = np.random.default_rng(0)


def units(seeds=2):
    kl = np.array([0.5, 2.0, 0.0])
    dims = ("seed", "latent")
    fit = xr.Dataset({"kl": (dims, np.tile(kl, (seeds, 1))), "active": (dims, np.tile(kl > 0.1, (seeds, 1)))})
    return dict.fromkeys(GUIDES, fit)


def latents(labels=None):
    dims = ("observation", "latent")
    given = xr.Dataset(
        {"mean": (dims, RNG.normal(size=(30, 3))), "scale": (dims, RNG.gamma(2, 0.2, (30, 3)))}
    )
    return dict.fromkeys(
        GUIDES, given if labels is None else given.assign_coords(label=("observation", labels))
    )


def trees():
    walks = np.arange(3)[:, None, None] + np.zeros((3, 5, 4))
    groups = {
        "prior_predictive": xr.Dataset({"x": (("chain", "draw", "feature"), RNG.normal(size=(1, 6, 4)))}),
        "traversal": xr.Dataset(
            {"x": (("latent", "offset", "feature"), walks)}, {"offset": np.linspace(-3, 3, 5)}
        ),
    }
    return {name: xr.DataTree.from_dict(groups) for name in GUIDES}


def test_calibration_pools_seeds_and_latents():
    pit = RNG.uniform(size=(2, 200, 3))
    levels = np.array([0.5, 0.9])
    covered = np.stack([(np.abs(2 * pit - 1) <= level).mean(1) for level in levels], axis=1)
    given = xr.Dataset(
        {
            "pit": (("seed", "simulation", "latent"), pit),
            "coverage": (("seed", "level", "latent"), covered),
        },
        {"level": levels},
    )
    figure = plot_calibration(dict.fromkeys(GUIDES, given))
    assert_whole(figure)
    np.testing.assert_allclose(figure.axes[0].get_lines()[1].get_ydata(), covered.mean((0, 2)))
    areas = [patch.get_data().values.sum() / 20 for patch in figure.axes[1].patches]
    np.testing.assert_allclose(areas, 1.0)


def test_gaps_are_stacked():
    given = xr.Dataset(
        {
            "approximation_gap": ("observation", np.array([1.0, 2.0])),
            "amortization_gap": ("observation", np.array([3.0, 5.0])),
        }
    )
    figure = plot_gaps(dict.fromkeys(GUIDES, given))
    assert_whole(figure)
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [1.5, 1.5, 4.0, 4.0]
    assert [bar.get_x() for bar in bars] == [0, 0, 1.5, 1.5]


def test_units_are_sorted_and_hollow_where_inactive():
    figure = plot_units(units())
    assert_whole(figure)
    lines = figure.axes[0].get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), [2.0, 0.5, 0.0])
    np.testing.assert_array_equal(lines[1].get_xdata(), [3])
    assert lines[1].get_markerfacecolor() == "white"


@pytest.mark.parametrize("guides", [1, 2, 5])
def test_scale_history_has_a_panel_for_each_guide(guides):
    history = xr.Dataset(
        {"scale": (("epoch", "latent"), RNG.uniform(0.05, 1, (4, 3)))}, {"epoch": [1, 2, 3, 4]}
    )
    figure = plot_scale_history({f"guide {i}": [history, history] for i in range(guides)})
    assert_whole(figure)
    assert [len(axes.get_lines()) for axes in figure.axes if axes.get_visible()] == [6] * guides


def test_scales_are_shares():
    figure = plot_scales(latents())
    assert_whole(figure)
    for patch in figure.axes[0].patches:
        assert patch.get_data().values.sum() == pytest.approx(1.0)


def test_samples_in_a_row_for_each_guide():
    figure = plot_samples(trees(), (2, 2))
    assert_whole(figure)
    assert figure.axes[0].get_images()[0].get_array().shape == (2 * 3, 6 * 3)
    assert "logvar | softplus" in texts(figure)


def test_walks_in_the_order_of_kl():
    figure = plot_traversal(trees(), {name: fit.isel(seed=0) for name, fit in units().items()}, (2, 2))
    assert_whole(figure)
    mosaic = figure.axes[0].get_images()[0].get_array()
    assert [mosaic[row, 0] for row in (0, 3, 6)] == [1, 0, 2]
    assert "z[1] | z[0] | z[2]" in texts(figure)


@pytest.mark.parametrize(
    ("labels", "legend"),
    [(None, False), (np.arange(30) % 3, True), (np.array(["a", "b"] * 15), True), (np.arange(30), False)],
)
def test_observations_in_latent_space(labels, legend):
    one_seed = {name: fit.isel(seed=0) for name, fit in units().items()}
    figure = plot_latents(latents(labels), one_seed)
    assert_whole(figure)
    assert figure.axes[0].get_xlabel() == "z[1]"
    assert bool(figure.legends) == legend
    if not legend:
        assert (
            to_hex(figure.axes[0].collections[0].get_facecolor()[0]) == guide_colors(GUIDES)["logvar"].lower()
        )


def test_one_latent_is_no_plane():
    flat = {name: given.isel(latent=[0]) for name, given in latents().items()}
    with pytest.raises(ValueError, match="'logvar' has one latent dimension; a plane needs two"):
        plot_latents(flat, {name: fit.isel(seed=0) for name, fit in units().items()})


def repaired_trees(latents=3, steps=("resample", "guide"), believable=(True, True)):
    def draws(observations):
        # each latent half as wide again as the one before: six standard errors of a width from 160 draws
        values = RNG.normal(size=(1, 40, observations, latents)) * 1.5 ** np.arange(latents)
        labels = {"observation": np.arange(5, 5 + observations)}
        return xr.Dataset({"z": (("chain", "draw", "observation", "latent"), values)}, labels)

    report = xr.Dataset(
        {"step": ("observation", list(steps)), "believable": ("observation", list(believable))},
        {"observation": [5, 6]},
    )
    groups = {"posterior": draws(4), "repaired": draws(2), "repair": report}
    return {name: xr.DataTree.from_dict(groups) for name in GUIDES}


def test_the_reference_stands_beside_the_guide():
    given = repaired_trees()
    figure = plot_reference(given)
    assert_whole(figure)
    assert [axes.get_title() for axes in figure.axes] == ["#5: resample", "#6: guide"] * 2
    (guide, *_), (reference, *_) = figure.axes[1].containers
    for line, group in ((guide, "posterior"), (reference, "repaired")):
        draws = given["logvar"][group]["z"].sel(observation=6)
        np.testing.assert_allclose(line.get_xdata(), draws.mean(("chain", "draw")))
    assert reference.get_color() == "black"
    assert to_hex(guide.get_color()) == guide_colors(GUIDES)["logvar"].lower()
    interval = figure.axes[1].containers[1].lines[2][0].get_segments()
    low, high = given["logvar"]["repaired"]["z"].sel(observation=6, latent=0).quantile([0.05, 0.95]).values
    np.testing.assert_allclose(interval[0][:, 0], [low, high])


def test_draws_that_are_not_believable_are_no_reference():
    figure = plot_reference(repaired_trees(steps=("resample", "local"), believable=(True, False)))
    assert [len(axes.containers) for axes in figure.axes] == [2, 1, 2, 1]
    assert figure.axes[1].get_title() == "#6: none believable"


def test_of_many_latents_the_surest_are_shown():
    figure = plot_reference(repaired_trees(latents=MOST_LATENTS + 3))
    assert_whole(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        f"z[{i}]" for i in range(MOST_LATENTS)
    ]
