"""The functions of ArviZ that docs/arviz.md lists, each as it is written there, on the ArviZ that is here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import pyro_vae
from pyro_vae.posterior import to_elpd

OWN_SEEDS = True


azp = pytest.importorskip("arviz_plots")
azs = pytest.importorskip("arviz_stats")
pytestmark = pytest.mark.arviz

PAGE = Path(__file__).parents[2] / "docs" / "arviz.md"


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    from matplotlib import pyplot

    yield
    pyplot.close("all")


def counts(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        rate = torch.stack([z[..., 0], z[..., 1], z.sum(-1)], -1).exp()
        pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)


def guide(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * (x[:, :2] - 1), 0.6).to_event(1))


def regression(y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope, 2.0), obs=y)


def slope_guide(y: torch.Tensor) -> None:
    pyro.sample("slope", dist.Normal(y.mean(), 2.0 / len(y) ** 0.5))


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's calls speak of."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.poisson(torch.ones(40, 3)), torch.randn(40) + 1
    x, y = x.double(), y.double()
    torch.set_default_dtype(torch.float64)
    calibration = pyro_vae.calibrate(counts, guide, n=100, data=x)
    tree = pyro_vae.from_pyro_svi(counts, guide, x[:8], draws=200, calibration=calibration)
    report = pyro_vae.diagnose(counts, guide, x, draws=200)
    other = pyro_vae.diagnose(counts, guide, x, draws=200, seed=1)
    return {
        "azp": azp,
        "azs": azs,
        "pd": pd,
        "xr": xr,
        "to_elpd": to_elpd,
        "tree": tree,
        "report": report,
        "table": pyro_vae.compare({"one": report, "two": other}),
        "again": pyro_vae.from_pyro_svi(counts, guide, x[:8], draws=200, seed=1),
        "shared": pyro_vae.from_pyro_svi(regression, slope_guide, y, draws=200),
    }


CALLS = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
LISTED = {
    "forest",
    "dist",
    "pair",
    "trace",
    "rank",
    "ppc_dist",
    "ppc_pit",
    "loo_pit",
    "ecdf_pit",
    "rootogram",
    "psense",
    "khat",
    "compare",
    "summary",
}


def test_the_page_lists_every_function() -> None:
    told = " ".join(name for name, _ in CALLS)
    assert [name for name in LISTED if name not in told] == []


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS])
def test_the_call_works_on_this_arviz(call: str, names: dict[str, Any]) -> None:
    assert eval(call, dict(names)) is not None


def test_integers_are_integers_and_the_rest_is_not(names: dict[str, Any]) -> None:
    tree = names["tree"]
    assert tree["observed_data"]["x"].dtype == np.int64
    assert tree["posterior_predictive"]["x"].dtype == np.int64
    assert tree["posterior"]["z"].dtype.kind == "f"
    assert names["shared"]["observed_data"]["y"].dtype.kind == "f"


def test_the_prior_by_site_and_the_densities_add_up(names: dict[str, Any]) -> None:
    tree = names["tree"]
    prior = dist.Normal(0.0, 1.0).log_prob(torch.tensor(tree["posterior"]["z"].values)).sum(-1)
    np.testing.assert_allclose(tree["log_prior"]["z"], prior)
    np.testing.assert_allclose(
        tree["log_prior"]["z"] + tree["log_likelihood"]["x"], tree["sample_stats"]["log_p"]
    )
    shared = names["shared"]
    assert shared["log_prior"]["slope"].dims == ("chain", "draw")
    total = shared["log_prior"]["slope"] + shared["log_likelihood"]["y"].sum("observation")
    np.testing.assert_allclose(total, shared["sample_stats"]["log_p"])


def test_transforms_of_a_calibration_take_the_place_of_draws(names: dict[str, Any]) -> None:
    transforms = names["tree"]["prior_sbc"]["z"]
    assert dict(transforms.sizes) == {"chain": 1, "draw": 100, "latent": 2}
    assert ((transforms > 0) & (transforms < 1)).all()


@pytest.mark.parametrize(
    ("group", "variable", "called"),
    [
        ("posterior", "z", "z, drawn from the guide"),
        ("observed_data", "x", "x, observed"),
        ("log_prior", "z", "log p(z)"),
        ("sample_stats", "log_q", "log q(z | x)"),
    ],
)
def test_variables_have_names_and_densities_units(
    group: str, variable: str, called: str, names: dict[str, Any]
) -> None:
    attrs = names["tree"][group][variable].attrs
    assert attrs["long_name"] == called
    assert (attrs.get("units") == "nats") == group.startswith(("log", "sample"))


def test_a_calibration_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="calibration is a Dataset; give what calibrate"):
        pyro_vae.from_pyro_svi(counts, guide, torch.ones(3, 3), draws=30, calibration=xr.Dataset())
