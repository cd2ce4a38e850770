"""The constraint of each scale map in torch's registries and in Pyro's parameters, modules and autoguides."""

import copy
import math
import pickle
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch.distributions import biject_to, constraints, transform_to

from pyro_vae.guides import scales
from pyro_vae.guides.scales import ScaleMap
from tests.guides.test_scales import MAPS

all_maps = pytest.mark.parametrize("scale_map", MAPS, ids=repr)


@all_maps
def test_registries_give_the_map_back(scale_map: ScaleMap) -> None:
    assert transform_to(scale_map.constraint) == scale_map
    if scale_map.bijective:
        assert biject_to(scale_map.constraint) == scale_map
    else:
        with pytest.raises(NotImplementedError, match=r"not bijective\. Use transform_to"):
            biject_to(scale_map.constraint)


def test_no_map_answers_for_another() -> None:
    types = {type(scales.get(name).constraint) for name in scales.names()}
    assert len(types) == len(scales.names())
    for one in MAPS:
        for other in MAPS:
            assert (transform_to(one.constraint) == other) is (one is other)
            assert (one.constraint == other.constraint) is (one is other)
    assert transform_to(scales.Softplus(1.0).constraint) != transform_to(
        scales.Softplus(math.log(2)).constraint
    )
    for constraint in (constraints.positive, dist.constraints.softplus_positive):
        assert not isinstance(transform_to(constraint), ScaleMap)


@all_maps
def test_check(scale_map: ScaleMap) -> None:
    low, high = scale_map.bounds
    inside = scale_map(torch.tensor([-0.5, 0.0, 0.5]))
    assert scale_map.constraint.check(inside).all()
    outside = torch.tensor([0.0, -1.0, math.nan, 0.99 * low])
    assert not scale_map.constraint.check(outside).any()
    assert not scale_map.constraint.check(torch.tensor(1.01 * high)).any() or high == math.inf
    # what saturates rounds to its bound, which is not refused
    far = scale_map(torch.tensor([-1e4, 1e4], dtype=torch.float32))
    assert scale_map.constraint.check(far[far > 0]).all()


@all_maps
def test_constraint_is_a_value(scale_map: ScaleMap) -> None:
    constraint = scale_map.constraint
    for other in (pickle.loads(pickle.dumps(constraint)), copy.deepcopy(constraint), scale_map.constraint):
        assert other == constraint
        assert hash(other) == hash(constraint)
        assert type(other) is type(constraint)
    assert repr(constraint) == f"{scale_map!r}.constraint"
    assert constraint != constraints.positive
    assert constraint.event_dim == 0
    assert not constraint.is_discrete


@all_maps
def test_pyro_param(scale_map: ScaleMap, tmp_path: Path) -> None:
    init = torch.tensor([0.2, 0.3])
    sigma = pyro.param("sigma", init, constraint=scale_map.constraint)
    torch.testing.assert_close(sigma.detach(), init, rtol=1e-12, atol=0)
    store = pyro.get_param_store()
    torch.testing.assert_close(store._params["sigma"].detach(), scale_map.inv(init))

    store["sigma"] = torch.tensor([0.4, 0.15])
    saved = pyro.param("sigma").detach().clone()
    torch.testing.assert_close(saved, torch.tensor([0.4, 0.15]), rtol=1e-12, atol=0)
    store.save(tmp_path / "store")
    pyro.clear_param_store()
    store.load(tmp_path / "store")
    assert torch.equal(pyro.param("sigma").detach(), saved)
    assert store._constraints["sigma"] == scale_map.constraint


def test_pyro_param_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"inv of Bounded\(low=0.1, high=0.9\): scale must lie in its range"):
        pyro.param("sigma", torch.tensor(2.0), constraint=scales.Bounded(0.1, 0.9).constraint)


class Scaled(PyroModule):
    def __init__(self, scale_map: ScaleMap) -> None:
        super().__init__()
        self.sigma = PyroParam(torch.tensor([0.2, 0.4]), constraint=scale_map.constraint)


@all_maps
def test_pyro_param_of_a_module(scale_map: ScaleMap) -> None:
    module = Scaled(scale_map)
    torch.testing.assert_close(module.sigma.detach(), torch.tensor([0.2, 0.4]), rtol=1e-12, atol=0)
    module.sigma = torch.tensor([0.3, 0.45])
    state = module.state_dict()
    assert list(state) == ["sigma_unconstrained"]

    pyro.clear_param_store()
    fresh = Scaled(scale_map)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.sigma, module.sigma)
    assert torch.equal(copy.deepcopy(module).sigma, module.sigma)
    assert torch.equal(pickle.loads(pickle.dumps(module)).sigma, module.sigma)


OBSERVED = torch.tensor([0.9, 1.3, 1.1, 0.7])
POSTERIOR_SCALE = 1 / math.sqrt(1 + len(OBSERVED) / 0.6**2)  # of a N(0, 1) prior and noise of 0.6


def model() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(OBSERVED)):
        pyro.sample("x", dist.Normal(z, 0.6).to_event(1), obs=OBSERVED[:, None].expand(-1, 2))


@all_maps
@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDiagonalNormal])
def test_autoguide_trains_saves_and_loads(
    scale_map: ScaleMap, autoguide: type[AutoNormal | AutoDiagonalNormal], tmp_path: Path
) -> None:
    def new_guide() -> AutoNormal | AutoDiagonalNormal:
        guide = autoguide(model, init_scale=0.15)
        guide.scale_constraint = scale_map.constraint
        guide()  # lazy: the parameters come with the first call
        return guide

    def scale_of(guide: AutoNormal | AutoDiagonalNormal) -> torch.Tensor:
        scale: torch.Tensor = guide.scales.z if isinstance(guide, AutoNormal) else guide.scale
        return scale.detach()

    guide = new_guide()
    torch.testing.assert_close(scale_of(guide), torch.full((2,), 0.15), rtol=1e-12, atol=0)
    assert 0.15 < POSTERIOR_SCALE < 0.3
    svi = SVI(
        model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=4, vectorize_particles=True)
    )
    for _ in range(60):
        assert math.isfinite(svi.step())
    assert (scale_of(guide) > 0.16).all()  # on its way up to 0.287
    trained = {name: value.clone() for name, value in guide.state_dict().items()}
    median = guide.median()["z"]

    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    torch.testing.assert_close(new_guide().median()["z"], median)

    pyro.clear_param_store()
    fresh = new_guide()
    fresh.load_state_dict(trained)
    torch.testing.assert_close(fresh.median()["z"], median)
    torch.testing.assert_close(scale_of(fresh), scale_of(guide))
