"""Densities on the reals are those of the model, with the Jacobian of every support."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_vae.guides.refining.placement import placed_values
from pyro_vae.posterior.evaluation.preparation import prepare
from pyro_vae.posterior.evaluation.sites import PairError
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior
from tests.posterior.gaussians import GaussianGuide, dense, diagonal, observations


def supports(x):
    """Positive, a simplex, and an interval that ends at another latent."""
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        below = pyro.sample("below", dist.Uniform(0.0, rate))
        pyro.sample("x", dist.Normal(rate * shares[..., 0] + below, 1.0), obs=x)


def supports_guide(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.LogNormal(torch.zeros(len(x)), 0.5))
        pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        pyro.sample("below", dist.Uniform(0.0, rate))


def draws_of(pair, draws=5):
    return next(pair.blocks(draws, seed=0)).latents


def on_the_reals(pair, rows=None, **arguments):
    rows = np.arange(pair.observations) if rows is None else np.asarray(rows)
    values = {site: value[:, rows] for site, value in draws_of(pair).items()}
    return values, *UnconstrainedPosterior.of(pair, rows, values, **arguments)


def test_there_and_back():
    values, posterior, free = on_the_reals(prepare(supports, supports_guide, torch.ones(4)))
    assert posterior.sizes == {"rate": 1, "shares": 2, "below": 1}
    assert free.shape == (5, 4, 4)
    again = posterior.values(free)
    assert again.keys() == values.keys()
    for site, value in values.items():
        torch.testing.assert_close(again[site], value)


def test_the_jacobian_is_that_of_autograd():
    x = torch.tensor([0.3, 1.2])
    values, posterior, free = on_the_reals(prepare(supports, supports_guide, x))
    rate, shares, below = (values[site][0, 0] for site in ("rate", "shares", "below"))
    expected = (
        dist.Gamma(2.0, 1.5).log_prob(rate)
        + dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])).log_prob(shares)
        + dist.Uniform(0.0, rate).log_prob(below)
        + dist.Normal(rate * shares[0] + below, 1.0).log_prob(x[0])
    )

    def constrained(u):
        by_site = zip(posterior.sizes, u.expand(2, 4).split((1, 2, 1), -1), strict=True)
        with torch.enable_grad():
            z = placed_values(posterior.pair.model, dict(by_site), (x,), {}, -1)
        return torch.cat([z["rate"][:1], z["shares"][0, :2], z["below"][:1]])  # shares have two free numbers

    jacobian = torch.autograd.functional.jacobian(constrained, free[0, 0])
    density = posterior.log_density(free)[0, 0]
    torch.testing.assert_close(density, expected + torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0]])
def test_a_real_latent_has_the_joint_density(rows):
    model = dense()
    x = observations(model, 3)
    values, posterior, free = on_the_reals(prepare(model, GaussianGuide.exact(model), x), rows)
    torch.testing.assert_close(free, values["z"])
    z = values["z"]
    joint = dist.Normal(0.0, 1.0).expand(z.shape).to_event(1).log_prob(z) + dist.Normal(
        z @ model.weight.T, model.noise
    ).to_event(1).log_prob(x[rows])
    torch.testing.assert_close(posterior.log_density(free), joint)
    torch.testing.assert_close(posterior.part(np.array([1])).log_density(free[:, 1:2]), joint[:, 1:2])


def test_layout_and_chunk_do_not_matter():
    class OneRowAtATime(type(dense())):
        def forward(self, x):
            if x.dim() > 2:
                raise RuntimeError("no draws in front")
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
                assert z.dim() == 2, "the rows layout is wanted"
                pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise).to_event(1), obs=x)

    model = dense()
    x = observations(model, 4)
    guide = GaussianGuide.exact(model)
    rows = prepare(OneRowAtATime(model.weight), guide, x)
    broadcast = prepare(model, guide, x)
    assert (rows.layout, broadcast.layout) == ("rows", "broadcast")
    _, one, free = on_the_reals(broadcast)
    _, other, _ = on_the_reals(rows, chunk=8)
    torch.testing.assert_close(other.log_density(free), one.log_density(free))


def test_plates_within_an_observation():
    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.plate("parts", 3):
                z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w + z.sum(-2, keepdim=True), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            with pyro.plate("parts", 3):
                pyro.sample("z", dist.LogNormal(torch.zeros(len(x)), 0.3))
            pyro.sample("w", dist.Normal(torch.zeros(len(x)), 1.0))

    values, posterior, free = on_the_reals(prepare(model, guide, torch.ones(2)))
    assert posterior.sizes == {"z": 3, "w": 1}
    assert values["z"].shape == (5, 2, 3)
    torch.testing.assert_close(free[..., :3], values["z"].log())
    torch.testing.assert_close(posterior.values(free)["z"], values["z"])


def test_parameters_for_each_observation():
    model = diagonal()
    x = observations(model, 4)
    guide = AutoNormal(model)
    guide(x)
    pair = prepare(model, guide, x)
    assert pair.whole
    _, every, free = on_the_reals(pair)
    _, some, few = on_the_reals(pair, [3, 1])
    torch.testing.assert_close(few, free[:, [3, 1]])
    torch.testing.assert_close(some.log_density(few), every.log_density(free)[:, [3, 1]])
    torch.testing.assert_close(
        some.part(np.array([1])).log_density(few[:, 1:]), every.log_density(free)[:, [1]]
    )


def test_a_discrete_latent_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(torch.ones(len(x))))

    with pytest.raises(PairError, match="latent 'k' has no real coordinates"):
        on_the_reals(prepare(model, guide, torch.ones(2)))
