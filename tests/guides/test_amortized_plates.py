"""Encoder guides and the observation plate: every way to open it, and global latents beside it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuideList
from pyro.infer.autoguide import AutoNormal as PyroAutoNormal
from torch import nn

from pyro_vae.guides import AmortizedFlow, AmortizedMultivariateNormal, AmortizedNormal, AutoNormal

FAMILIES = [AmortizedNormal, AmortizedMultivariateNormal, AmortizedFlow]
WHOLE = 12


def latents_and_data(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    pyro.sample("x", dist.Normal(z, rate.unsqueeze(-1)).to_event(1), obs=x)


def whole(x):
    with pyro.plate("data", len(x)):
        latents_and_data(x)


def part_given(x, chosen, size=WHOLE):
    """The caller draws the batch and says which observations it has."""
    with pyro.plate("data", size, subsample=chosen) as indices:
        assert torch.equal(indices, chosen)
        latents_and_data(x)


def part_counted(x, size=WHOLE):
    """The caller draws the batch and says only how large the whole is."""
    with pyro.plate("data", size, len(x)):
        latents_and_data(x)


def part_drawn(x, batch_size):
    """The plate draws the batch from the whole data."""
    with pyro.plate("data", len(x), subsample_size=batch_size) as indices:
        latents_and_data(x[indices])


def part_subsampled(x, batch_size):
    with pyro.plate("data", len(x), subsample_size=batch_size):
        latents_and_data(pyro.subsample(x, event_dim=1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 6)

    def forward(self, x, *rest, **options):
        return self.linear(x).tanh()


def joint_trace(model, guide, *args):
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args)
    return model_trace, guide_trace


CALLS = {
    "whole": (whole, lambda x: (x,), 1.0),
    "given": (part_given, lambda x: (x[:4], torch.tensor([7, 0, 3, 11])), WHOLE / 4),
    "all given": (part_given, lambda x: (x, torch.randperm(WHOLE)), 1.0),
    "counted": (part_counted, lambda x: (x[:4],), WHOLE / 4),
    "drawn": (part_drawn, lambda x: (x, 4), WHOLE / 4),
    "subsampled": (part_subsampled, lambda x: (x, 4), WHOLE / 4),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CALLS)
def test_sees_the_models_plate(family, case):
    model, arguments, scale = CALLS[case]
    args = arguments(torch.randn(WHOLE, 2))
    guide = family(model, Encoder())
    for _ in range(2):  # the call that sets up, and a later one
        model_trace, guide_trace = joint_trace(model, guide, *args)
        latents = [
            site for site in guide_trace.nodes.values() if site["type"] == "sample" and site["name"] != "data"
        ]
        assert {"z", "rate"} <= {site["name"] for site in latents}
        assert all(site["scale"] == pytest.approx(scale) for site in latents)
        assert model_trace.nodes["x"]["scale"] == pytest.approx(scale)
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO()):
        assert math.isfinite(elbo.loss(model, guide, *args))
    vectorized = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(vectorized.loss(model, guide, *args))


@pytest.mark.parametrize("model", [part_drawn, part_subsampled])
def test_features_follow_the_drawn_observations(model):
    x = torch.randn(WHOLE, 2)
    guide = AmortizedNormal(model, Encoder())
    loc = guide.local_parameters(x, 4)["loc"]
    seen = set()
    for _ in range(3):
        model_trace, guide_trace = joint_trace(model, guide, x, 4)
        indices = guide_trace.nodes["data"]["value"]
        assert torch.equal(indices, model_trace.nodes["data"]["value"])
        torch.testing.assert_close(guide_trace.nodes["z"]["fn"].mean, loc[indices, :2])
        torch.testing.assert_close(model_trace.nodes["x"]["value"], x[indices])
        seen |= set(indices.tolist())
    assert len(seen) > 4


@pytest.mark.parametrize("case", ["given", "counted"])
def test_batches_of_an_epoch_average_to_the_whole(case):
    """With the analytic KL alone, exactly."""
    part = poutine.block({"given": part_given, "counted": part_counted}[case], hide=["rate", "x"])
    x = torch.randn(WHOLE, 2)
    guide = AmortizedNormal(part, Encoder())
    losses = [
        TraceMeanField_ELBO().loss(part, guide, x[rows], *([rows] if case == "given" else []))
        for rows in torch.randperm(WHOLE).split(4)
    ]
    all_of_it = poutine.block(whole, hide=["rate", "x"])
    same_guide = AmortizedNormal(all_of_it, guide.encoder)
    same_guide.load_state_dict(guide.state_dict())
    expected = TraceMeanField_ELBO().loss(all_of_it, same_guide, x)
    assert sum(losses) / 3 == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_may_change_their_size(family):
    x = torch.randn(WHOLE, 2)
    guide = family(whole, Encoder())
    for rows in (5, 2, 12, 5):
        model_trace, guide_trace = joint_trace(whole, guide, x[:rows])
        assert guide_trace.nodes["z"]["scale"] == model_trace.nodes["z"]["scale"] == 1.0
        assert guide_trace.nodes["z"]["value"].shape == (rows, 2)


def test_a_batch_after_the_whole_data_is_scaled_as_the_model_scales_it():
    """Set up on all data, both look alike; the smaller batch tells a part from a smaller whole."""
    x = torch.randn(WHOLE, 2)
    for model, scale in ((whole, 1.0), (part_counted, WHOLE / 4)):
        guide = AmortizedNormal(model, Encoder())
        guide(x)
        _, guide_trace = joint_trace(model, guide, x[:4])
        assert guide_trace.nodes["z"]["scale"] == pytest.approx(scale)


def test_another_whole_of_the_same_batch_size_is_seen():
    """Training and test data of different size, same batch size."""
    x, chosen = torch.randn(4, 2), torch.arange(4)
    guide = AmortizedNormal(part_given, Encoder())
    for size in (WHOLE, 1000):
        _, guide_trace = joint_trace(part_given, guide, x, chosen, size)
        assert guide_trace.nodes["z"]["scale"] == pytest.approx(size / 4)


def test_later_calls_do_not_run_the_model():
    calls = []

    def counted(x, weight=1.0):
        calls.append(len(x))
        whole(x)

    x = torch.randn(WHOLE, 2)
    guide = AmortizedNormal(counted, Encoder())
    for rows in (5, 5, 2, 5, 2):
        guide(x[:rows])
    assert calls == [5, 2]
    for weight in (0.1, 0.2, 0.3):  # a schedule is no new structure
        guide(x[:5], weight=weight)
    assert calls == [5, 2, 5]


def test_a_given_part_costs_no_permutation_of_the_whole():
    """pyro.plate(size, subsample_size=) draws one in every step: 8 TB here."""
    guide = AmortizedNormal(part_given, Encoder())
    guide(torch.randn(4, 2), torch.arange(4), 10**12)


# Beside global latents


def with_global(x):
    weight = pyro.sample("weight", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * weight, 1.0).to_event(1), obs=x)


def with_global_and_part(x, chosen):
    weight = pyro.sample("weight", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", WHOLE, subsample=chosen, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * weight, 1.0).to_event(1), obs=x)


def guide_list(model, family, autoguide=AutoNormal, **options):
    guide = AutoGuideList(model, **options)
    guide.append(autoguide(poutine.block(model, expose=["weight"])))
    guide.append(family(poutine.block(model, expose=["z"]), Encoder()))
    return guide


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("autoguide", [AutoNormal, PyroAutoNormal])
@pytest.mark.parametrize("elbo_class", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
def test_guide_list_with_changing_batches(family, autoguide, elbo_class):
    x = torch.randn(WHOLE, 2)
    guide = guide_list(
        with_global, family, autoguide, create_plates=lambda x: pyro.plate("data", len(x), dim=-1)
    )
    elbo = elbo_class()
    for rows in (5, 5, 2):
        assert math.isfinite(elbo.loss_and_grads(with_global, guide, x[:rows]))
    assert all(p.grad.isfinite().all() for p in guide.parameters())
    vectorized = elbo_class(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(vectorized.loss(with_global, guide, x))


def test_guide_list_with_a_given_part():
    x, chosen = torch.randn(4, 2), torch.tensor([7, 0, 3, 11])
    guide = guide_list(
        with_global_and_part,
        AmortizedNormal,
        create_plates=lambda x, chosen: pyro.plate("data", WHOLE, subsample=chosen, dim=-1),
    )
    model_trace, guide_trace = joint_trace(with_global_and_part, guide, x, chosen)
    assert guide_trace.nodes["z"]["scale"] == model_trace.nodes["z"]["scale"] == WHOLE / 4
    assert guide_trace.nodes["weight"]["scale"] == 1.0
    assert torch.equal(model_trace.nodes["data"]["value"], chosen)


def test_guide_list_without_plates_of_each_call_is_told_so():
    x = torch.randn(5, 2)
    guide = guide_list(with_global, AmortizedNormal)
    guide(x)
    with pytest.raises(ValueError, match=r"guide list opened plate 'data' for 5.*create_plates=lambda"):
        guide(x[:2])


def test_guide_list_medians_come_from_both_parts():
    x = torch.randn(5, 2)
    guide = guide_list(with_global, AmortizedNormal)
    guide(x)
    assert {name: tuple(value.shape) for name, value in guide.median(x).items()} == {
        "weight": (2,),
        "z": (5, 2),
    }
    assert guide.quantiles([0.1, 0.9], x)["z"].shape == (2, 5, 2)


def test_the_local_part_of_a_list_can_be_asked_before_the_list():
    x = torch.randn(5, 2)
    guide = guide_list(with_global, AmortizedNormal)
    assert guide[1].posterior(x).batch_shape == (5,)
    assert math.isfinite(Trace_ELBO().loss(with_global, guide, x))


def test_state_of_a_list_into_a_fresh_list():
    x = torch.randn(5, 2)
    trained, fresh = guide_list(with_global, AmortizedNormal), guide_list(with_global, AmortizedNormal)
    trained(x)
    local = {name: value for name, value in trained.state_dict().items() if name.startswith("1.")}
    assert not fresh.load_state_dict(local, strict=False).unexpected_keys
    torch.testing.assert_close(fresh[1].posterior(x).mean, trained[1].posterior(x).mean)


def test_a_discrete_latent_beside_it_is_marginalized():
    @config_enumerate
    def mixture(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z + torch.tensor([-1.0, 1.0])[k].unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    x = torch.randn(5, 2)
    guide = AmortizedNormal(poutine.block(mixture, hide=["k"]), Encoder())
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for rows in (5, 2):
        assert math.isfinite(elbo.loss_and_grads(mixture, guide, x[:rows]))


def test_refuses_whole_features_for_a_part_that_the_caller_chose():
    x = torch.randn(WHOLE, 2)

    def model(x, chosen):
        with pyro.plate("data", len(x), subsample=chosen):
            latents_and_data(x[chosen])

    guide = AmortizedNormal(model, Encoder())
    with pytest.raises(
        ValueError, match=r"returned 12 rows of features, but plate 'data' .* has 4 obs.*, 4$"
    ):
        guide(x, torch.arange(4))


def test_refuses_rows_that_are_neither_the_batch_nor_the_whole():
    class Wrong(nn.Module):
        def forward(self, x, batch_size):
            return x[:5]

    guide = AmortizedNormal(part_drawn, Wrong())
    with pytest.raises(ValueError, match=r"returned 5 rows .* 4 \(or 12, for the plate to draw from\)"):
        guide(torch.randn(WHOLE, 2), 4)
