"""A pair given its shared latents is one about single observations, and several such reports are one."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.guides import AmortizedNormal
from pyro_vae.posterior import diagnose
from pyro_vae.posterior.given import average_over_shared, given_shared

X = [[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]]


def model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 300, subsample=x) as batch:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal((loc + z)[:, None], 1.0).expand([len(z), 2]).to_event(1), obs=batch)


def test_what_an_autoguide_draws_on_the_way_is_hidden_too() -> None:
    x = torch.tensor(X)
    guide = AmortizedNormal(model, nn.Linear(2, 4), globals="AutoNormal")
    one, other = given_shared(model, guide, x, draws=2, seed=0)
    assert one.shared["loc"] != other.shared["loc"]
    sites = poutine.trace(one.guide).get_trace(x).nodes
    assert [name for name, site in sites.items() if site["type"] == "sample"] == ["z"]
    # given loc the evidence of an observation has a closed form
    report = diagnose(one.model, one.guide, x, draws=1000, refined=True)
    covariance = torch.eye(2) + torch.ones(2, 2)
    exact = dist.MultivariateNormal(one.shared["loc"].expand(2), covariance).log_prob(x)
    difference = report.log_evidence - exact.numpy()
    assert bool((abs(difference) < 5 * report.log_evidence_se).all())
    assert float(report.log_evidence_se.max()) < 0.05


def test_the_density_is_the_mean_over_draws_and_what_alarms_is_the_worst() -> None:
    reports = [
        xr.Dataset(
            {
                "log_evidence": ("observation", [evidence, -2000.0]),
                "log_evidence_se": ("observation", [0.1, error]),
                "khat": ("observation", [khat, -np.inf]),
                "ess": ("observation", [ess, 50.0]),
                "elbo": ("observation", [evidence - 1, -2001.0]),
            },
            attrs={"khat_threshold": 0.7, "draws": 100},
        )
        for evidence, khat, ess, error in [(0.0, 0.1, 90.0, 0.0), (np.log(3.0), 0.9, 30.0, np.inf)]
    ]
    both = average_over_shared(reports)
    assert both["log_evidence"].values == pytest.approx([np.log(2.0), -2000.0])
    assert both["khat"].values.tolist() == [0.9, -np.inf]
    assert both["ess"].values.tolist() == [30.0, 50.0]
    assert both["elbo"].values == pytest.approx([np.log(3.0) / 2 - 1, -2001.0])
    # densities 1 and 3: their mean varies by their spread over √2, and each by a tenth of itself
    assert float(both["log_evidence_se"][0]) == pytest.approx(np.hypot(1.0, np.hypot(0.1, 0.3) / 2) / 2)
    assert float(both["log_evidence_se"][1]) == np.inf
    assert both.attrs == {"khat_threshold": 0.7, "draws": 100, "shared_draws": 2}
