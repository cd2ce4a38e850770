"""Latents as programs have them: mixture priors, masks, plates, enumerated ones, and shared ones beside them.
Each is fitted, diagnosed and drawn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor, nn
from torch.distributions import biject_to

import pyro_vae
from pyro_vae.guides import AmortizedFlow, AmortizedMultivariateNormal, AmortizedNormal, AutoNormal

FAMILIES = [AmortizedNormal, AmortizedMultivariateNormal, AmortizedFlow]
ROWS = 40
WEIGHT = torch.tensor([[1.0, 0.5, -0.5], [0.0, 1.0, 1.0]])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.linear(x).tanh()


def observe(z: Tensor) -> Any:
    return dist.Normal(z @ WEIGHT.to(z), 1.0).to_event(1)


def mixture_prior(x: Tensor) -> None:
    locs = torch.tensor([[-2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    with pyro.plate("data", len(x)):
        parts = dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), dist.Normal(locs, 1.0).to_event(1)
        pyro.sample("x", observe(pyro.sample("z", dist.MixtureSameFamily(*parts))), obs=x)


def plate_within(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with pyro.plate("latent", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", observe(z.transpose(-1, -2)), obs=x)


def plate_around(x: Tensor) -> None:
    observations = pyro.plate("data", len(x), dim=-2)
    with observations, pyro.plate("latent", 2, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with observations, pyro.plate("features", 3, dim=-1):
        pyro.sample("x", dist.Normal(z @ WEIGHT.to(z), 1.0), obs=x)


@config_enumerate
def enumerated(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        shift = torch.tensor([-0.7, 0.7]).to(z)[k].unsqueeze(-1)
        pyro.sample("x", dist.Normal(z @ WEIGHT.to(z) + shift, 1.0).to_event(1), obs=x)


def evidence_of_normal(x: Tensor, loc: Tensor) -> Tensor:
    """log p(x) where z ~ N(loc, I)."""
    weight = WEIGHT.to(x)
    covariance = weight.mT @ weight + torch.eye(3).to(x)
    return dist.MultivariateNormal(loc.to(x) @ weight, covariance).log_prob(x)


def mixed(x: Tensor, weights: Tensor, locs: Tensor) -> Tensor:
    """log p(x) where z is from a mixture of such Normals."""
    return torch.stack(
        [w.log() + evidence_of_normal(x, m) for w, m in zip(weights, locs, strict=True)]
    ).logsumexp(0)


def evidence_of_enumerated(x: Tensor) -> Tensor:
    zero = torch.zeros(2)
    parts = [math.log(w) + evidence_of_normal(x - m, zero) for w, m in ((0.3, -0.7), (0.7, 0.7))]
    return torch.stack(parts).logsumexp(0)


KINDS: dict[str, tuple[Callable[[Tensor], None], Callable[[Tensor], Tensor]]] = {
    "mixture prior": (
        mixture_prior,
        lambda x: mixed(
            x, torch.tensor([0.2, 0.3, 0.5]), torch.tensor([[-2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        ),
    ),
    "plate within": (plate_within, lambda x: evidence_of_normal(x, torch.zeros(2))),
    "plate around": (plate_around, lambda x: evidence_of_normal(x, torch.zeros(2))),
    "enumerated": (enumerated, evidence_of_enumerated),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_fitted_diagnosed_and_drawn(kind: str, family: Any) -> None:
    model, evidence = KINDS[kind]
    pyro.set_rng_seed(0)
    x = 1.5 * torch.randn(ROWS, 3)
    guide = family(model, Encoder())
    objective = TraceEnum_ELBO(max_plate_nesting=2) if kind == "enumerated" else None
    fitted = pyro_vae.fit(
        model, guide, x, steps=150, batch_size=20, lr=0.03, objective=objective, progress=False
    )
    assert fitted.engine == "captured"
    assert fitted.history["loss"][-20:].mean() < fitted.history["loss"][:4].mean()
    report = pyro_vae.diagnose(fitted.model, fitted.guide, x, draws=400)
    exact = evidence(x.double()).numpy()
    believed = report["khat"].values < 0.7
    assert believed.sum() > ROWS / 3
    error = np.maximum(report["log_evidence_se"].values, 0.02)[believed]
    assert (np.abs(report["log_evidence"].values - exact)[believed] < 5 * error).all()
    assert (report["elbo"].values < exact + 0.3).all()
    tree = pyro_vae.from_pyro_svi(fitted.model, fitted.guide, x, draws=20)
    assert tree["posterior"]["z"].shape == (1, 20, ROWS, 2)
    assert tree["posterior_predictive"]["x"].shape == (1, 20, ROWS, 3)
    assert fitted.guide.posterior(x).batch_shape == (ROWS,)


@pytest.mark.parametrize("family", FAMILIES)
def test_plates_and_events_are_the_same_posterior(family: Any) -> None:
    """Whatever the layout, the guide's density of given values is that of its joint."""
    x = torch.randn(5, 3)
    for model, layout in ((plate_within, (1, 0)), (plate_around, (0, 1))):
        guide = family(model, Encoder())
        trace = poutine.trace(guide).get_trace(x)
        trace.compute_log_prob()
        values = trace.nodes["z"]["value"]
        assert values.shape == tuple((5, 2)[i] for i in layout)
        total = sum(site["log_prob_sum"] for site in trace.nodes.values() if "log_prob_sum" in site)
        torch.testing.assert_close(total, guide.posterior(x).log_prob(values.permute(layout)).sum())
        for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
            assert math.isfinite(elbo.loss(model, guide, x))
            vectorized = type(elbo)(num_particles=3, vectorize_particles=True, max_plate_nesting=2)
            assert math.isfinite(vectorized.loss(model, guide, x))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_positive_latent_in_two_inner_plates_keeps_its_jacobian(family: Any) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("a", 2, dim=-3), pyro.plate("b", 3, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.factor("x", (x.sum() * 0.0) + rate.sum() * 0.0)

    x = torch.randn(4, 3)
    guide = family(model, Encoder())
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["rate"]["value"].shape == (2, 4, 3)
    values = trace.nodes["rate"]["value"].permute(1, 0, 2)
    assert guide.posterior(x).event_shape == (2, 3)
    total = sum(site["log_prob_sum"] for site in trace.nodes.values() if "log_prob_sum" in site)
    torch.testing.assert_close(total, guide.posterior(x).log_prob(values).sum(), rtol=1e-4, atol=1e-4)
    if family is not AmortizedFlow:
        assert guide.median(x)["rate"].shape == (4, 2, 3)


# Masks


def masked_by_distribution(x: Tensor, seen: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(seen))
        pyro.sample("x", observe(z).mask(seen), obs=x)


def masked_by_handler(x: Tensor, seen: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", observe(z), obs=x)


def masked_coordinates(x: Tensor, seen: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).mask(seen.unsqueeze(-1)).to_event(1))
        pyro.sample("x", observe(z).mask(seen), obs=x)


@pytest.mark.parametrize("model", [masked_by_distribution, masked_by_handler, masked_coordinates])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_masked_adds_nothing(model: Any, family: Any) -> None:
    """The loss and its gradients are those of the other observations alone."""
    if model is masked_coordinates and family is not AmortizedNormal:
        with pytest.raises(ValueError, match=r"parts of a latent's value .* take AmortizedNormal"):
            family(model, Encoder())(torch.randn(4, 3), torch.ones(4, dtype=torch.bool))
        return
    x, seen = torch.randn(12, 3), torch.arange(12) % 3 > 0
    guide = family(model, Encoder())
    guide(x, seen)
    for some, here in ((x, seen), (x[seen], seen[seen])):
        trace = poutine.trace(guide).get_trace(some, here)
        trace.compute_log_prob()
        replayed = poutine.trace(poutine.replay(model, trace)).get_trace(some, here)
        replayed.compute_log_prob()
        for found in (trace, replayed):
            density = sum(
                s["log_prob"] for s in found.nodes.values() if "log_prob" in s and s["name"] != "data"
            )
            rows = density if density.dim() == 1 else density.sum(-1)
            assert not rows[~here].any()
            assert rows[here].all()
    loss = TraceMeanField_ELBO().differentiable_loss(model, guide, x, seen)
    loss.backward()
    assert guide.scale_head.raw.weight.grad is not None


def test_a_masked_latent_has_no_loss_without_bound() -> None:
    pyro.set_rng_seed(0)
    x, seen = torch.randn(ROWS, 3), torch.arange(ROWS) % 2 == 0
    guide = AmortizedNormal(masked_by_distribution, Encoder())
    fitted = pyro_vae.fit(
        masked_by_distribution, guide, (x, seen), steps=200, batch_size=ROWS, lr=0.05, progress=False
    )
    assert fitted.engine == "captured"
    exact = evidence_of_normal(x[seen].double(), torch.zeros(2)).sum() / ROWS
    assert float(fitted.history["loss"][-1]) > -float(exact) - 0.5
    report = pyro_vae.diagnose(fitted.model, fitted.guide, (x, seen), draws=100)
    np.testing.assert_allclose(report["log_evidence"].values[~seen.numpy()], 0.0, atol=1e-12)
    with pytest.raises(ValueError, match="latent 'z' is masked"):
        pyro_vae.refine(fitted.model, fitted.guide, (x, seen))


def test_masks_of_latents_that_depend_on_others_draw_nothing() -> None:
    """A sequence: each latent reads the one before; the network after the last is not run."""
    ran = []

    def model(x: Tensor, length: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z_0", dist.Normal(0.0, 1.0).mask(length > 0))
            last = pyro.sample("z_1", dist.Gamma(z.exp(), 1.0).mask(length > 1))
            ran.append(torch.rand(()))
            pyro.sample("x", dist.Normal(last, 1.0), obs=x[:, 0])

    x, length = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    guide = AmortizedNormal(model, Encoder())
    guide(x, length)
    ran.clear()
    state = torch.get_rng_state()
    guide(x, length)
    moved = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randn(6), torch.randn(6)
    assert torch.equal(torch.get_rng_state(), moved)
    assert not ran


# Shared latents beside them


def with_shared(x: Tensor, size: int = ROWS) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("parts", 2):
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.3))
    with pyro.plate("data", size, len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, noise.sum()).to_event(1), obs=x)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "make", ["AutoNormal", "AutoMultivariateNormal", lambda m: AutoNormal(m, scale="logvar")]
)
def test_shared_latents_have_an_autoguide_beside(family: Any, make: Any) -> None:
    x = torch.randn(ROWS, 3)
    guide = family(with_shared, Encoder(), globals=make)
    draws = guide(x)
    assert {name: tuple(draw.shape) for name, draw in draws.items()} == {
        "weight": (2, 3),
        "noise": (2,),
        "z": (ROWS, 2),
    }
    trace = poutine.trace(guide).get_trace(x[:10])
    assert trace.nodes["z"]["scale"] == ROWS / 10
    assert trace.nodes["weight"]["scale"] == 1.0
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        assert math.isfinite(elbo.loss(with_shared, guide, x[:10]))
    fresh = family(with_shared, Encoder(), globals=make)
    fresh.load_state_dict(guide.state_dict())  # before the first call
    fresh(x)
    for name, value in guide.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)


def test_shared_and_local_latents_are_fitted_and_diagnosed_together() -> None:
    pyro.set_rng_seed(0)
    x = torch.randn(ROWS, 2) @ torch.randn(2, 3) + 0.5 * torch.randn(ROWS, 3)
    guide = AmortizedNormal(with_shared, Encoder(), globals="AutoNormal")
    fitted = pyro_vae.fit(with_shared, guide, x, steps=120, batch_size=20, lr=0.03, progress=False)
    assert fitted.engine == "captured"
    assert fitted.history["loss"][-10:].mean() < fitted.history["loss"][:4].mean()
    report = pyro_vae.diagnose(fitted.model, fitted.guide, x, draws=50)
    assert report["khat"].dims == ()
    assert float(report["elbo"]) < 0
    tree = pyro_vae.from_pyro_svi(fitted.model, fitted.guide, x, draws=10)
    assert tree["posterior"]["weight"].shape == (1, 10, 2, 3)
    assert tree["posterior"]["z"].shape == (1, 10, ROWS, 2)
    assert fitted.guide.median(x)["z"].shape == (ROWS, 2)
    assert fitted.guide.shared.guide.median()["weight"].shape == (2, 3)


def test_shared_latents_in_pyros_svi() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x = torch.randn(ROWS, 3)
    guide = AmortizedNormal(with_shared, Encoder(), globals="AutoNormal")
    svi = pyro_vae.SVI(with_shared, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert svi.engine == "captured"
    assert sum(losses[-10:]) < sum(losses[:10])
    assert any("shared" in name for name in pyro.get_param_store())


def test_bad_globals_are_refused() -> None:
    with pytest.raises(ValueError, match="globals is 'AutoNorm'; give one of AutoDiagonalNormal"):
        AmortizedNormal(with_shared, Encoder(), globals="AutoNorm")
    with pytest.raises(TypeError, match="globals is an int; give the name of an autoguide"):
        AmortizedNormal(with_shared, Encoder(), globals=3)  # type: ignore[arg-type]


# Enumerated latents


def by_hand(x: Tensor) -> None:
    """:func:`enumerated`, summed by a mixture."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        shifts = torch.tensor([-0.7, 0.7]).to(z).unsqueeze(-1)
        parts = dist.Normal((z @ WEIGHT.to(z)).unsqueeze(-2) + shifts, 1.0).to_event(1)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts), obs=x)


def test_weights_are_those_of_the_sum_by_hand() -> None:
    x = torch.randn(5, 3)
    guide = AmortizedNormal(by_hand, Encoder())
    guide(x)
    ours, hand = (pyro_vae.log_weights(model, guide, x, draws=20) for model in (enumerated, by_hand))
    np.testing.assert_allclose(ours.values, hand.values, rtol=1e-6)


def test_discrete_draws_are_from_their_posterior() -> None:
    @config_enumerate
    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1e-4).to_event(1))

    x = torch.tensor([-1.5, 0.0, 0.3, 2.0])
    draws = 400
    tree = pyro_vae.from_pyro_svi(model, guide, x, draws=draws)
    odds = torch.stack([w * dist.Normal(m, 1.0).log_prob(x).exp() for w, m in ((0.3, -1.0), (0.7, 1.0))])
    exact = (odds[1] / odds.sum(0)).numpy()
    found = tree["posterior"]["k"].values[0].mean(0)
    assert (np.abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / draws)).all()
    report = pyro_vae.diagnose(model, guide, x, draws=50)
    assert np.isfinite(float(report["elbo"]))


def test_several_observed_sites_share_an_enumerated_latent() -> None:
    """Their likelihoods are a chain, whose total is the sum over the latent."""

    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.4))
            z = pyro.sample("z", dist.Normal(k, 1.0))
            pyro.sample("a", dist.Normal(z + k, 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(z - k, 1.0), obs=x[:, 1])

    x = torch.randn(4, 3)
    guide = AmortizedNormal(model, Encoder())
    guide(x)
    tree = pyro_vae.from_pyro_svi(model, guide, x, draws=6)
    z = torch.as_tensor(tree["posterior"]["z"].values[0], dtype=torch.float64)
    parts = [
        math.log(p)
        + sum(dist.Normal(m, 1.0).log_prob(v) for m, v in ((k, z), (z + k, x[:, 0]), (z - k, x[:, 1])))
        for k, p in ((0.0, 0.6), (1.0, 0.4))
    ]
    np.testing.assert_allclose(
        tree["sample_stats"]["log_p"].values[0], torch.stack(parts).logsumexp(0).numpy(), rtol=1e-5
    )
    total = sum(tree["log_likelihood"][name].values for name in ("a", "b"))
    prior = torch.stack([math.log(p) + dist.Normal(k, 1.0).log_prob(z) for k, p in ((0.0, 0.6), (1.0, 0.4))])
    np.testing.assert_allclose(
        total[0] + prior.logsumexp(0).numpy(), tree["sample_stats"]["log_p"].values[0], rtol=1e-5
    )


def test_a_mixture_has_real_coordinates_where_its_parts_share_their_bounds() -> None:
    weights = dist.Categorical(torch.ones(2))
    same = dist.MixtureSameFamily(weights, dist.Gamma(torch.ones(2), torch.ones(2)))
    assert biject_to(same.support)(torch.zeros(3)).shape == (3,)
    apart = dist.MixtureSameFamily(weights, dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])))
    with pytest.raises(ValueError, match="components of a mixture differ in their lower_bound"):
        biject_to(apart.support)
