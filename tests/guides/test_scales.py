"""Every scale map against its definition in 60 digits, and as a transform among torch's."""

import copy
import math
import pickle
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import (
    ComposeTransform,
    LogNormal,
    Normal,
    TransformedDistribution,
    constraints,
    transforms,
)
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.guides import scales
from pyro_vae.guides.scales import ScaleMap
from tests.guides import exact_scales

BUILT_IN = ["logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus", "bounded", "softclip"]
BUILT_IN += ["clamp", "abs"]
MAPS = [
    *map(scales.get, BUILT_IN),
    scales.Softplus(beta=math.log(2)),
    scales.Bounded(low=0.01, high=1.0),
    scales.Bounded(low=1e-30, high=1e30),
    scales.SoftClip(low=0.1, high=0.5),
    scales.Floor(scales.LogVar(), min_scale=1e-4),
    scales.Floor(scales.StdPlus(), min_scale=1e-3),
]
BIJECTIVE = [m for m in MAPS if m.bijective]
MONOTONE = [m for m in MAPS if not isinstance(m, scales.Abs)]
SMOOTH = [m for m in BIJECTIVE if not isinstance(m, scales.SoftClip)]

EXTREME = [sign * size for size in (1e4, 1e3, 100.0, 20.0, 1.0, 1e-6) for sign in (-1, 1)] + [0.0]
# where the formulas change hands, and where other people's formulas break
SEAMS = [
    -105.0,
    -95.0,
    -40.0,
    -39.9,
    -18.0,
    -9.5,
    -0.126,
    -0.125,
    -0.124,
    0.124,
    0.125,
    0.126,
    6.9,
    7.0,
    39.9,
]
RAW = EXTREME + SEAMS
MODERATE = [-8.0, -3.0, -1.0, -0.3, -0.05, 0.05, 0.4, 1.0, 2.5, 6.0]

all_maps = pytest.mark.parametrize("scale_map", MAPS, ids=repr)
bijective_maps = pytest.mark.parametrize("scale_map", BIJECTIVE, ids=repr)
all_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def exact(function: Callable[[ScaleMap, float], mpmath.mpf], scale_map: ScaleMap, raw: Tensor) -> Tensor:
    values = [float(function(scale_map, r)) for r in raw.detach().double().tolist()]
    return torch.tensor(values, dtype=torch.float64)


@all_maps
@all_dtypes
def test_every_map_at_every_raw(scale_map: ScaleMap, dtype: torch.dtype) -> None:
    raw = torch.tensor(RAW, dtype=dtype, requires_grad=True)
    log_scale = scale_map.log_scale(raw)
    (gradient,) = torch.autograd.grad(log_scale.sum(), raw)
    slope = scale_map.slope(raw.detach())
    scale = scale_map(raw.detach())

    # A bfloat16 raw is exact in float32, where everything is computed: the same tolerance holds.
    wide = torch.promote_types(dtype, torch.float32)
    eps, tiny = torch.finfo(wide).eps, torch.finfo(wide).tiny
    rtol = 1e-6 if wide == torch.float32 else 1e-14
    assert log_scale.dtype == slope.dtype == scale.dtype == wide
    assert gradient.dtype == dtype

    # Next to σ = 1 the absolute error of log σ counts: it is added to numbers of order one.
    expected = exact(exact_scales.log_scale, scale_map, raw)
    assert log_scale.isfinite().all()
    torch.testing.assert_close(log_scale.detach().double(), expected, rtol=rtol, atol=2 * eps)

    # Derivatives below the smallest normal number may be flushed to zero.
    expected_slope = exact(exact_scales.slope, scale_map, raw)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=10 * rtol, atol=tiny)
    # The gradient arrives in the dtype of raw.
    gradient_rtol = max(10 * rtol, torch.finfo(dtype).eps)
    torch.testing.assert_close(gradient.double(), expected_slope, rtol=gradient_rtol, atol=tiny)

    # σ is exp(log σ), to the last bit, and so is 0 or inf only where log σ leaves the range of the dtype.
    assert torch.equal(scale, log_scale.detach().exp())
    assert scale_map.contains(scale[scale > 0]).all()


SIZES = st.floats(-60, 60).map(math.exp)
INTERVALS = st.tuples(st.floats(-60, 55), st.floats(0.05, 60)).map(
    lambda bounds: {"low": math.exp(bounds[0]), "high": math.exp(sum(bounds))}
)


@settings(deadline=None)
@given(
    scale_map=st.one_of(
        SIZES.map(scales.Softplus),
        INTERVALS.map(lambda interval: scales.Bounded(**interval)),
        INTERVALS.map(lambda interval: scales.SoftClip(**interval)),
        SIZES.map(lambda size: scales.Floor(scales.SoftplusVar(), size)),
        SIZES.map(lambda size: scales.Floor(scales.ExpLinear(), size)),
    ),
    raw=st.floats(-1e4, 1e4),
)
def test_any_options_at_any_raw(scale_map: ScaleMap, raw: float) -> None:
    value = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
    log_scale = scale_map.log_scale(value)
    (gradient,) = torch.autograd.grad(log_scale, value)
    # Terms of log σ up to log(high) may cancel, and with low next to high so do those of the gradient.
    atol = 1e-15 * sum(abs(math.log(b)) for b in scale_map.bounds if 0 < b < math.inf) + 1e-15
    expected = float(exact_scales.log_scale(scale_map, raw))
    assert log_scale.item() == pytest.approx(expected, rel=1e-12, abs=atol)
    slope = float(exact_scales.slope(scale_map, raw))
    assert gradient.item() == pytest.approx(slope, rel=1e-10, abs=1e-300)
    assert scale_map.slope(value).item() == pytest.approx(slope, rel=1e-11, abs=1e-300)


@all_maps
def test_under_autocast(scale_map: ScaleMap) -> None:
    head = nn.Linear(3, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        raw = head(torch.ones(4, 3, dtype=torch.float32))
        log_scale = scale_map.log_scale(raw)
    assert raw.dtype == torch.bfloat16
    assert torch.equal(log_scale, scale_map.log_scale(raw.float()))


@all_maps
def test_float16_is_computed_in_float32(scale_map: ScaleMap) -> None:
    raw = torch.tensor(MODERATE, dtype=torch.float16)
    for function in (scale_map, scale_map.log_scale, scale_map.slope):
        assert torch.equal(function(raw), function(raw.float()))
    scale = torch.tensor([0.15, 0.3, 0.45], dtype=torch.float16)
    assert torch.equal(scale_map.inv(scale), scale_map.inv(scale.float()))


@bijective_maps
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_inverse_to_the_conditioning_of_the_map(scale_map: ScaleMap, dtype: torch.dtype) -> None:
    raw = torch.tensor(RAW + MODERATE, dtype=dtype)
    scale = scale_map(raw)
    normal = (scale >= torch.finfo(dtype).smallest_normal) & scale.isfinite()
    raw, scale = raw[normal].double(), scale[normal]
    # σ = exp(log σ) carries a relative error of ε (1 + |log σ|), which moves raw by that much over the slope.
    eps = torch.finfo(dtype).eps
    log_scale = exact(exact_scales.log_scale, scale_map, raw)
    conditioning = (1 + log_scale.abs()) / exact(exact_scales.slope, scale_map, raw) + raw.abs()
    back = scale_map.inv(scale)
    assert back.dtype == dtype
    assert back.isfinite().all()
    assert ((back.double() - raw).abs() <= 2 * eps * conditioning).all()


@all_maps
def test_forward_of_inverse(scale_map: ScaleMap) -> None:
    low, high = scale_map.bounds
    scale = torch.tensor([0.11, 0.13, 0.2, 0.3, 0.45, 0.49])
    assert low < 0.11
    assert high > 0.49
    torch.testing.assert_close(scale_map(scale_map.inv(scale)), scale, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale_map", MONOTONE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_monotone(scale_map: ScaleMap, dtype: torch.dtype) -> None:
    sizes = torch.logspace(-6, 4, 400, dtype=dtype)
    raw = torch.cat([-sizes.flip(0), torch.zeros(1, dtype=dtype), sizes])
    assert (scale_map.log_scale(raw).diff() >= 0).all()
    assert scale_map.sign == 1


@all_maps
def test_slope_is_the_gradient(scale_map: ScaleMap) -> None:
    raw = torch.tensor(MODERATE, requires_grad=True)
    (gradient,) = torch.autograd.grad(scale_map.log_scale(raw).sum(), raw)
    torch.testing.assert_close(scale_map.slope(raw), gradient, rtol=1e-12, atol=0)


@bijective_maps
def test_jacobian_is_autograds(scale_map: ScaleMap) -> None:
    raw = torch.tensor(MODERATE, requires_grad=True)
    scale = scale_map(raw)
    (gradient,) = torch.autograd.grad(scale.sum(), raw)
    log_jacobian = scale_map.log_abs_det_jacobian(raw, scale)
    torch.testing.assert_close(log_jacobian, gradient.abs().log(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(scale_map.inv.log_abs_det_jacobian(scale, raw), -log_jacobian)


@bijective_maps
def test_jacobian_far_out(scale_map: ScaleMap) -> None:
    raw = torch.tensor([-1e4, -200.0, 200.0, 1e4], dtype=torch.float32)
    log_jacobian = scale_map.log_abs_det_jacobian(raw, scale_map(raw))
    unfloored = scale_map.map if isinstance(scale_map, scales.Floor) else scale_map
    expected = [
        float(exact_scales.log_scale(unfloored, r) + mpmath.log(exact_scales.slope(unfloored, r)))
        for r in raw.tolist()
    ]
    torch.testing.assert_close(log_jacobian.double(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale_map", [scales.Clamp(), scales.Abs()], ids=repr)
def test_counter_examples_are_not_bijective(scale_map: ScaleMap) -> None:
    raw = torch.ones(1)
    assert not scale_map.bijective
    with pytest.raises(NotImplementedError, match="not bijective"):
        scale_map.log_abs_det_jacobian(raw, scale_map(raw))


def test_abs_has_no_sign() -> None:
    with pytest.raises(NotImplementedError, match="not monotone"):
        _ = scales.Abs().sign


# What each map is known for --------------------------------------------------------------------------


def test_stdplus_solves_its_equation() -> None:
    raw = torch.linspace(-20, 20, 4001)
    log_scale = scales.StdPlus().log_scale(raw)
    torch.testing.assert_close(
        (2 * log_scale).exp() - 2 * log_scale - 1, raw.square(), rtol=1e-13, atol=1e-13
    )
    assert torch.equal(log_scale.sign(), raw.sign())


def test_stdplus_is_relatively_exact_next_to_zero() -> None:
    for raw in (1e-6, -1e-6, 1e-3, -0.1, 0.13):
        log_scale = scales.StdPlus().log_scale(torch.tensor(raw)).item()
        assert log_scale == pytest.approx(float(exact_scales.log_scale(scales.StdPlus(), raw)), rel=4e-15)


def test_stdplus_known_values() -> None:
    raw = torch.tensor([-2.0, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0, 5.0])
    known = torch.tensor([0.08236, 0.39824, 0.93014, 1.0, 1.07152, 1.77375, 2.63379, 5.42036])
    torch.testing.assert_close(scales.StdPlus()(raw), known, rtol=0, atol=5e-6)
    assert scales.StdPlus().slope(torch.zeros(())).item() == pytest.approx(1 / math.sqrt(2), rel=1e-15)


def test_explinear_has_no_hole() -> None:
    raw = torch.tensor([-18.0, -30.0], dtype=torch.float32)
    assert (torch.nn.functional.elu(raw) + 1 == 0).all()
    torch.testing.assert_close(scales.ExpLinear()(raw), (raw / 2).exp())


def test_softplus_gradient_where_the_naive_log_loses_it() -> None:
    raw = torch.tensor([-95.0, -105.0, -1e4], dtype=torch.float32, requires_grad=True)
    (naive,) = torch.autograd.grad(torch.nn.functional.softplus(raw).log().sum(), raw)
    (gradient,) = torch.autograd.grad(scales.Softplus().log_scale(raw).sum(), raw)
    assert not naive.isfinite().all()
    assert torch.equal(gradient, torch.ones(3, dtype=torch.float32))


def test_softplus_with_beta_log_2_is_one_at_zero() -> None:
    torch.testing.assert_close(scales.Softplus(beta=math.log(2))(torch.zeros(())), torch.ones(()))


@pytest.mark.parametrize(
    ("scale_map", "known"),
    [  # at raw = -40, -10, -2, 0.5, 2, 10, 40
        (scales.LogVar(), [-0.5, -0.5, -0.432, 0.324, 3.19, 1.1e4, 1.2e17]),
        (scales.LogStd(), [-1, -1, -0.982, 1.72, 53.6, 4.9e8, 5.5e34]),
        (scales.Softplus(), [-1, -1, -0.924, -0.033, 1.46, 9.9, 40]),
        (scales.Softplus(beta=math.log(2)), [-0.693, -0.693, -0.557, 0.284, 1.51, 9.89, 40]),
        (scales.SoftplusVar(), [-0.5, -0.5, -0.41, -0.008, 0.233, 0.45, 0.488]),
        (scales.ExpLinear(), [-0.5, -0.5, -0.432, 0.167, 0.333, 0.455, 0.488]),
        (scales.StdPlus(), [-40, -10, -2, 0.5, 2, 10, 40]),
        (scales.SoftClip(), [-0.022, -0.17, -0.57, 1.34, 12.8, 590, 2.8e3]),
        (scales.Abs(), [-40, -9.9, -1.5, -1.5, 1.5, 9.9, 40]),
    ],
    ids=repr,
)
def test_gradient_of_the_kl_to_a_standard_normal(scale_map: ScaleMap, known: list[float]) -> None:
    raw = torch.tensor([-40.0, -10.0, -2.0, 0.5, 2.0, 10.0, 40.0], requires_grad=True)
    log_scale = scale_map.log_scale(raw)
    (gradient,) = torch.autograd.grad(0.5 * (torch.expm1(2 * log_scale) - 2 * log_scale).sum(), raw)
    # The known values have two to three digits, and |raw| - 1/|raw| was called |raw|.
    torch.testing.assert_close(gradient, torch.tensor(known), rtol=0.03, atol=5e-4)


@pytest.mark.parametrize("name", ["softplus-var", "explinear"])
def test_bounded_gradient_of_the_kl(name: str) -> None:
    raw = torch.linspace(-1e3, 1e3, 10_001)
    scale_map = scales.get(name)
    gradient = torch.expm1(2 * scale_map.log_scale(raw)) * scale_map.slope(raw)
    assert (gradient.abs() <= 0.5 * (1 + 1e-15)).all()


def test_logvar_is_logstd_in_another_unit() -> None:
    raw = torch.randn(100)
    assert torch.equal(scales.LogVar().log_scale(2 * raw), scales.LogStd().log_scale(raw))


def test_default_maps_reach_a_unit_scale() -> None:
    for name in BUILT_IN:
        scale_map = scales.get(name)
        raw = scale_map.inv(torch.tensor(1.0))
        assert scale_map(raw).item() == pytest.approx(1.0, rel=1e-14)
        assert scale_map.slope(raw).item() > 0.3


# As torch functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_map", SMOOTH, ids=repr)
def test_second_derivative(scale_map: ScaleMap) -> None:
    raw = torch.tensor([-2.5, -0.3, -0.05, 0.06, 0.4, 2.5], requires_grad=True)
    assert torch.autograd.gradcheck(scale_map.log_scale, raw)
    assert torch.autograd.gradgradcheck(scale_map.log_scale, raw)
    assert torch.autograd.gradcheck(scale_map.slope, raw)


@all_maps
def test_under_torch_func(scale_map: ScaleMap) -> None:
    raw = torch.tensor(MODERATE)
    slope = torch.vmap(torch.func.grad(scale_map.log_scale))(raw)
    torch.testing.assert_close(slope, scale_map.slope(raw), rtol=1e-12, atol=0)
    value, tangent = torch.func.jvp(scale_map.log_scale, (raw,), (torch.ones_like(raw),))
    torch.testing.assert_close(value, scale_map.log_scale(raw))
    torch.testing.assert_close(tangent, slope)
    scale = torch.tensor([0.12, 0.3, 0.4])
    torch.testing.assert_close(torch.vmap(scale_map.inv)(scale), scale_map.inv(scale))


@all_maps
@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_captured_as_a_graph(scale_map: ScaleMap, mode: str) -> None:
    def value_and_gradient(raw: Tensor) -> tuple[Tensor, ...]:
        log_scale = scale_map.log_scale(raw)
        return log_scale, scale_map.slope(raw), *torch.autograd.grad(log_scale.sum(), raw)

    graph = make_fx(value_and_gradient, tracing_mode=mode)(torch.ones(3, requires_grad=True))
    assert not [n for n in graph.graph.nodes if n.target is torch.ops.aten._local_scalar_dense.default]
    elsewhere = torch.tensor([-50.0, -0.01, 30.0], requires_grad=True)
    for captured, eager in zip(graph(elsewhere), value_and_gradient(elsewhere), strict=True):
        torch.testing.assert_close(captured, eager, rtol=1e-14, atol=0)


@all_maps
def test_nan_stays_nan(scale_map: ScaleMap) -> None:
    nan = torch.tensor([math.nan])
    assert scale_map.log_scale(nan).isnan()
    assert scale_map(nan).isnan()


@all_maps
def test_shapes_are_kept(scale_map: ScaleMap) -> None:
    for shape in [(), (0,), (3,), (2, 0, 3), (2, 3)]:
        raw = torch.ones(shape)
        assert scale_map(raw).shape == scale_map.slope(raw).shape == scale_map.inv(0.2 * raw).shape == shape


@pytest.mark.parametrize("scale_map", [scales.get("logstd"), scales.get("stdplus")], ids=repr)
def test_raw_is_never_changed(scale_map: ScaleMap) -> None:
    raw = torch.tensor(MODERATE)
    before = raw.clone()
    scale_map(raw)
    assert torch.equal(raw, before)


# As torch transforms ---------------------------------------------------------------------------------


@all_maps
def test_is_a_transform(scale_map: ScaleMap) -> None:
    assert isinstance(scale_map, transforms.Transform)
    assert scale_map.domain is constraints.real
    assert scale_map.codomain is constraints.positive
    assert isinstance(scale_map.inv, transforms.Transform)
    assert scale_map.inv.inv is scale_map
    assert scale_map.event_dim == 0


@bijective_maps
def test_composes(scale_map: ScaleMap) -> None:
    raw = torch.tensor([-0.5, 0.1, 0.7])
    shifted = ComposeTransform([transforms.AffineTransform(0.3, 1.0), scale_map])
    torch.testing.assert_close(shifted(raw), scale_map(raw + 0.3))
    torch.testing.assert_close(shifted.inv(shifted(raw)), raw)
    torch.testing.assert_close(
        shifted.log_abs_det_jacobian(raw, shifted(raw)), scale_map.log_abs_det_jacobian(raw + 0.3, raw)
    )


def test_pushes_a_density_forward() -> None:
    pushed = TransformedDistribution(Normal(0.3, 0.7), [scales.LogStd()])
    scale = torch.tensor([0.2, 1.0, 4.0])
    torch.testing.assert_close(pushed.log_prob(scale), LogNormal(0.3, 0.7).log_prob(scale))


@all_maps
def test_cache(scale_map: ScaleMap) -> None:
    cached = scale_map.with_cache()
    raw = torch.tensor([0.2, 0.5])
    scale = cached(raw)
    assert cached(raw) is scale
    assert cached.inv(scale) is raw
    assert cached == scale_map
    assert scale_map.with_cache(0) is scale_map


@all_maps
def test_equality_hash_repr_and_pickle(scale_map: ScaleMap) -> None:
    for other in (
        pickle.loads(pickle.dumps(scale_map)),
        copy.deepcopy(scale_map),
        eval(repr(scale_map), vars(scales)),
    ):
        assert other == scale_map
        assert hash(other) == hash(scale_map)
    assert len(set(MAPS)) == len(MAPS)
    assert scale_map != transforms.ExpTransform()


# Wrong use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: scales.Softplus(beta=0), ValueError, "beta is 0; give a positive number"),
        (lambda: scales.Softplus(beta=math.nan), ValueError, "beta is nan; give a positive number"),
        (lambda: scales.Softplus(beta="sharp"), TypeError, "beta is 'sharp'; give a positive number"),
        (lambda: scales.Bounded(low=0.0), ValueError, "low is 0.0; give a positive number"),
        (lambda: scales.Bounded(high=math.inf), ValueError, "high is inf; give a positive number"),
        (
            lambda: scales.Bounded(low=2, high=1),
            ValueError,
            "low is 2; give less than high, which is 1",
        ),
        (lambda: scales.SoftClip(low=1, high=1), ValueError, "low is 1; give less than high"),
        (lambda: scales.Clamp(low=-1), ValueError, "low is -1; give a positive number"),
        (lambda: scales.Abs(low=0), ValueError, "low is 0; give a positive number"),
        (lambda: scales.Floor(scales.LogVar(), 0), ValueError, "min_scale is 0; give a positive number"),
        (lambda: scales.Floor("logvar", 1.0), TypeError, "map is 'logvar'; give a ScaleMap"),
    ],
)
def test_options_are_checked(make: Callable[[], ScaleMap], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("scale_map", "scale"),
    [
        (scales.LogVar(), 0.0),
        (scales.Softplus(), -1.0),
        (scales.StdPlus(), math.nan),
        (scales.Bounded(low=0.1, high=0.9), 1.0),
        (scales.SoftClip(low=0.1, high=0.9), 0.09),
        (scales.Clamp(low=0.1), 0.01),
        (scales.Floor(scales.LogVar(), min_scale=0.1), 0.01),
    ],
    ids=repr,
)
def test_inverse_out_of_range_is_refused(scale_map: ScaleMap, scale: float) -> None:
    low, high = scale_map.bounds
    with pytest.raises(
        ValueError, match=f"scale must lie in its range, {low:g} to {high:g}, but goes from"
    ) as error:
        scale_map.inv(torch.tensor([0.5, scale]))
    assert repr(scale_map) in str(error.value)


def test_a_map_without_its_formula() -> None:
    class Unfinished(ScaleMap):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished has no _log_scale"):
        Unfinished()(torch.zeros(1))
