"""Scale maps by name, and from one map to another."""

import json

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.guides import scales
from pyro_vae.guides.scales import ScaleMap, registry


@pytest.fixture
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MAPS", dict(registry._MAPS))


class PowerOfTwo(ScaleMap):
    formula = "2^raw"
    log_slope = 0.6931471805599453

    def _log_scale(self, raw: Tensor) -> Tensor:
        return raw * self.log_slope

    def _raw(self, scale: Tensor) -> Tensor:
        return scale.log2()


def test_names_are_those_of_the_documentation() -> None:
    known = ["logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus", "bounded", "softclip"]
    assert scales.names()[:10] == [*known, "clamp", "abs"]


def test_get_by_name() -> None:
    for name in scales.names():
        assert scales.get(name).name == name or name not in registry._MAPS
    assert scales.get("softplus", beta=2) == scales.Softplus(beta=2.0)
    assert scales.get("bounded", low=1e-3, high=1.0) == scales.Bounded(1e-3, 1.0)


def test_get_gives_a_map_back() -> None:
    softplus = scales.Softplus()
    assert scales.get(softplus) is softplus


def test_get_with_a_floor() -> None:
    floored = scales.Floor(scales.Softplus(beta=2.0), min_scale=0.1)
    assert scales.get("softplus", beta=2.0, min_scale=0.1) == floored
    assert scales.get(scales.Softplus(beta=2.0), min_scale=0.1) == floored


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("soft_plus", "no scale map is named 'soft_plus'. Did you mean 'softplus'"),
        ("LogVar", "Did you mean 'logvar'"),
        ("sqrt", "no scale map is named 'sqrt'. The names are logvar, logstd, softplus"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scales.get(name)


def test_wrong_arguments_of_get() -> None:
    with pytest.raises(TypeError, match="'softplus' takes beta; give it without low"):
        scales.get("softplus", low=1.0)
    with pytest.raises(TypeError, match="'logvar' takes no options; give it without beta"):
        scales.get("logvar", beta=1.0)
    with pytest.raises(TypeError, match=r"Softplus\(beta=1.0\) is a map already"):
        scales.get(scales.Softplus(), beta=2.0)
    with pytest.raises(TypeError, match=r"scale is 3; give a scale map or the name of one"):
        scales.get(3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_registry_as_it_was")
def test_a_map_of_ones_own() -> None:
    scales.register("power-of-two", PowerOfTwo)
    mine = scales.get("power-of-two")
    raw = torch.tensor([-3.0, 0.0, 5.0])
    torch.testing.assert_close(mine(raw), torch.tensor([0.125, 1.0, 32.0]))
    torch.testing.assert_close(mine.inv(mine(raw)), raw)
    # the slope it did not write comes from automatic differentiation
    torch.testing.assert_close(mine.slope(raw), torch.full((3,), PowerOfTwo.log_slope))
    torch.testing.assert_close(torch.distributions.biject_to(mine.constraint)(raw), mine(raw))
    assert scales.names()[-1] == "power-of-two"
    assert scales.table()[-1]["sigma"] == "2^raw"
    head = nn.Linear(2, 3)
    new = scales.convert(head, "power-of-two", "logstd")
    features = torch.randn(4, 2)
    torch.testing.assert_close(scales.LogStd()(new(features)), mine(head(features)))


@pytest.mark.usefixtures("_registry_as_it_was")
def test_register_refuses() -> None:
    class Needy(PowerOfTwo):
        def __init__(self, base: float) -> None:
            super().__init__()
            self.base = base

    with pytest.raises(ValueError, match="the name 'softplus' belongs to Softplus"):
        scales.register("softplus", PowerOfTwo)
    with pytest.raises(TypeError, match="give a subclass of ScaleMap"):
        scales.register("mine", PowerOfTwo())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Needy requires base\. Give each a default"):
        scales.register("needy", Needy)
    scales.register("softplus", scales.Softplus)  # again: as a notebook cell run twice does


def test_table() -> None:
    rows = {row["name"]: row for row in scales.table()}
    assert json.loads(json.dumps(rows)) == rows
    assert rows["stdplus"]["slope_at_0"] == "0.7071"
    assert rows["bounded"]["map"] == "Bounded(low=0.001, high=2.0)"
    assert rows["bounded"]["range"] == "0.001 to 2"
    assert rows["softplus"]["sigma_at_0"] == "0.6931"
    assert all(all(row.values()) for row in rows.values())


@pytest.mark.parametrize(("source", "target"), [("logvar", "logstd"), ("logstd", "logvar")])
@pytest.mark.parametrize("bias", [True, False])
def test_convert_is_exact(source: str, target: str, bias: bool) -> None:
    head = nn.Linear(5, 3, bias=bias)
    before, stream = head.weight.clone(), torch.get_rng_state()
    new = scales.convert(head, source, target)
    assert torch.equal(torch.get_rng_state(), stream)
    features = torch.randn(7, 5)
    assert torch.equal(
        scales.get(target).log_scale(new(features)), scales.get(source).log_scale(head(features))
    )
    assert torch.equal(head.weight, before)
    assert (new.bias is None) is not bias
    assert all(parameter.requires_grad for parameter in new.parameters())


def test_convert_to_the_same_map_copies() -> None:
    head = nn.Linear(5, 3)
    new = scales.convert(head, "softplus", scales.Softplus())
    assert new is not head
    assert torch.equal(new.weight, head.weight)
    assert new.weight is not head.weight


def test_convert_of_a_parametrized_head() -> None:
    head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    features = torch.randn(7, 5)
    torch.testing.assert_close(2 * scales.convert(head, "logvar", "logstd")(features), head(features))


def test_convert_refuses() -> None:
    head = nn.Linear(5, 3)
    with pytest.raises(ValueError, match=r"raw of LogVar\(\) into raw of Softplus.* under the target"):
        scales.convert(head, "logvar", "softplus")
    with pytest.raises(ValueError, match=r"not proportional to raw under the source. Keep StdPlus\(\)"):
        scales.convert(head, "stdplus", "logvar")
    with pytest.raises(ValueError, match="no linear layer"):
        scales.convert(head, scales.Softplus(1.0), scales.Softplus(2.0))
    with pytest.raises(TypeError, match=r"head is a Sequential; give the nn.Linear whose output is raw"):
        scales.convert(nn.Sequential(head), "logvar", "logstd")  # type: ignore[arg-type]
