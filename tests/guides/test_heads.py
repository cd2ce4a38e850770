import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList
from sklearn.datasets import load_digits
from torch import nn

from pyro_vae.guides import (
    AmortizedNormal,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    scales,
)
from pyro_vae.guides.heads import ScaleHead, raw_parameters

MAPS = scales.names()


def init_scale_of(name):
    low, high = scales.get(name).bounds
    return 0.3 if low < 0.3 < high else math.sqrt(low * high)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_at_init_scale_for_every_input(name, dtype):
    init_scale = init_scale_of(name)
    head = ScaleHead(5, 3, name, init_scale).to(dtype)
    log_scale = head(1e3 * torch.randn(7, 5, dtype=dtype))
    assert log_scale.shape == (7, 3)
    assert log_scale.dtype == dtype
    expected = torch.full((7, 3), init_scale, dtype=dtype).log()
    torch.testing.assert_close(log_scale, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_in_low_precision_gives_float32(name, dtype):
    head = ScaleHead(5, 3, name, init_scale_of(name)).to(dtype)
    log_scale = head(torch.randn(7, 5, dtype=dtype))
    raw = head.raw(torch.randn(7, 5, dtype=dtype)).float()
    assert log_scale.dtype == torch.float32
    torch.testing.assert_close(log_scale, head.scale_map.log_scale(raw))


def test_takes_a_map_with_options_and_shows_it():
    head = ScaleHead(5, 3, scales.get("softplus", beta=2.0), init_scale=0.2)
    assert head.scale_map == scales.Softplus(beta=2.0)
    assert "Softplus(beta=2.0)" in repr(head)


@pytest.mark.parametrize("init_scale", [0.0, -1.0, float("inf"), float("nan"), "1", True])
def test_init_scale_must_be_a_positive_number(init_scale):
    with pytest.raises(ValueError, match="give a positive number"):
        ScaleHead(5, 3, "softplus", init_scale)


def test_init_scale_must_be_a_scale_of_the_map():
    with pytest.raises(
        ValueError, match=r"init_scale is 5.0, and the scales of Bounded\(low=0.1, high=1.0\)"
    ):
        ScaleHead(5, 3, scales.get("bounded", low=0.1, high=1.0), 5.0)


def model(x):
    weight = pyro.sample("net.weight", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * weight, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("name", MAPS)
def test_raw_parameters_of_a_whole_guide_list(name):
    init_scale = init_scale_of(name)
    guide = AutoGuideList(model, create_plates=lambda x: pyro.plate("data", len(x), dim=-1))
    guide.append(
        AutoNormal(pyro.poutine.block(model, expose=["net.weight"]), scale=name, init_scale=init_scale)
    )
    guide.append(
        AmortizedNormal(
            pyro.poutine.block(model, expose=["z"]), nn.Linear(2, 4), scale=name, init_scale=init_scale
        )
    )
    assert raw_parameters(guide) == {}
    guide(torch.randn(3, 2))
    raw = raw_parameters(guide)
    assert set(raw) == {
        "0.scales.net.weight_unconstrained",
        "1.scale_head.raw.weight",
        "1.scale_head.raw.bias",
    }
    by_name = dict(guide.named_parameters())
    scale_map = scales.get(name)
    start = scale_map.inv(torch.tensor(init_scale))
    for key, (parameter, slope) in raw.items():
        assert parameter is by_name[key]
        assert slope == pytest.approx(scale_map.slope(start).item(), rel=1e-12)


@pytest.mark.parametrize("guide_class", [AutoDiagonalNormal, AutoLowRankMultivariateNormal])
def test_raw_parameters_of_joint_autoguides(guide_class):
    guide = guide_class(model, scale="softplus", init_scale=0.3)
    guide(torch.randn(3, 2))
    ((key, (parameter, slope)),) = raw_parameters(guide).items()
    assert key == "scale_unconstrained"
    torch.testing.assert_close(
        scales.get("softplus").slope(parameter), torch.full_like(parameter, slope), rtol=1e-6, atol=0
    )


def digits_trajectory(scale, matched):
    """log σ of one image during 200 Adam steps of a VAE on handwritten digits."""
    digits = torch.as_tensor(load_digits().data[:256])
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 64))
    encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh())

    def vae(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Binomial(16, logits=decoder(z)).to_event(1), obs=x)

    guide = AmortizedNormal(vae, encoder, scale=scale, init_scale=0.5)
    guide.posterior(digits)
    raw = raw_parameters(guide) if matched else {}
    lr, eps = 1e-2, 1e-8
    groups = [{"params": [p], "lr": lr / slope, "eps": eps * slope} for p, slope in raw.values()]
    others = [p for name, p in guide.named_parameters() if name not in raw]
    optimizer = torch.optim.Adam([{"params": [*others, *decoder.parameters()]}, *groups], lr=lr, eps=eps)
    elbo, trajectory = TraceMeanField_ELBO(), []
    for step in range(200):
        batch = digits[torch.arange(32) + 32 * (step % 8)]
        optimizer.zero_grad()
        elbo.loss_and_grads(vae, guide, batch)
        optimizer.step()
        trajectory.append(guide.local_parameters(digits[:1])["log_scale"].detach())
    return torch.cat(trajectory)


def test_matched_rates_give_logvar_and_logstd_one_trajectory():
    """Adam's step is its rate times a ratio that no rescaling of the parameter changes, but for eps."""
    logvar, logstd = (digits_trajectory(scale, matched=True) for scale in ("logvar", "logstd"))
    assert (logvar[0] - logvar[-1]).abs().max() > 0.3
    torch.testing.assert_close(logvar, logstd, rtol=0, atol=1e-6)
    at_equal_rates = digits_trajectory("logvar", matched=False)
    assert (at_equal_rates - logstd).abs().max() > 0.1


def test_raw_parameters_of_modules_without_any():
    assert raw_parameters(nn.Sequential(nn.Linear(2, 2))) == {}
