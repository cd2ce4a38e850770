"""LogScaleNormal: everything a Normal does, and right where a Normal is not."""

import copy
import math
import pickle
from collections.abc import Callable

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import SVI, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.guides import LogScaleNormal, scales

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
SHAPES = [((), ()), ((3,), (3,)), ((2, 3), ()), ((), (2, 3)), ((2, 1), (3,)), ((0,), (1,))]


def pair(
    loc_shape: tuple[int, ...] = (2, 3), scale_shape: tuple[int, ...] = (3,)
) -> tuple[LogScaleNormal, dist.Normal]:
    loc, log_scale = torch.randn(loc_shape), torch.randn(scale_shape)
    return LogScaleNormal(loc, log_scale), dist.Normal(loc, log_scale.exp())


def log_prob_of_own_draw(loc: Tensor, log_scale: Tensor) -> Tensor:
    q = LogScaleNormal(loc, log_scale, validate_args=False)
    return q.log_prob(q.rsample()).sum()


# As a Normal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loc_shape", "scale_shape"), SHAPES)
@pytest.mark.parametrize("sample_shape", [(), (4,), (4, 5)])
def test_shapes_and_values(
    loc_shape: tuple[int, ...], scale_shape: tuple[int, ...], sample_shape: tuple[int, ...]
) -> None:
    q, normal = pair(loc_shape, scale_shape)
    assert q.batch_shape == normal.batch_shape
    assert q.event_shape == normal.event_shape == ()
    assert q.shape(sample_shape) == normal.shape(sample_shape)
    value = normal.sample(sample_shape)
    for method in ("log_prob", "cdf"):
        torch.testing.assert_close(
            getattr(q, method)(value), getattr(normal, method)(value), rtol=1e-11, atol=1e-12
        )
    torch.testing.assert_close(q.icdf(normal.cdf(value)), value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.entropy(), normal.entropy())
    for moment in ("loc", "scale", "mean", "mode", "stddev", "variance"):
        torch.testing.assert_close(getattr(q, moment), getattr(normal, moment))
    assert torch.equal(q.log_scale, q.log_scale.expand(q.batch_shape))
    assert q.perplexity().shape == normal.perplexity().shape


@pytest.mark.parametrize("sample_shape", [(), (4,), torch.Size((4, 5)), [2]])
def test_the_same_seed_gives_a_normals_draws(sample_shape: tuple[int, ...]) -> None:
    q, normal = pair((8, 6), (6,))
    for method in ("sample", "rsample", "__call__"):
        torch.manual_seed(1)
        ours = getattr(q, method)(sample_shape)
        torch.manual_seed(1)
        torch.testing.assert_close(ours, getattr(normal, method)(sample_shape), rtol=1e-14, atol=1e-14)


def test_flags_and_support() -> None:
    q, normal = pair()
    assert isinstance(q, dist.Normal)
    assert q.has_rsample
    assert not q.has_enumerate_support
    assert q.support is normal.support
    assert q.event_dim == 0
    assert LogScaleNormal.infer_shapes(loc=(2, 1), log_scale=(3,)) == ((2, 3), ())
    assert not q.has_rsample_(False).has_rsample
    with pytest.raises(NotImplementedError):
        q.enumerate_support()


def test_numbers_and_dtypes() -> None:
    assert LogScaleNormal(0.0, 0.0).batch_shape == ()
    assert LogScaleNormal(0, torch.zeros(2)).loc.dtype == torch.float64
    mixed = LogScaleNormal(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float32))
    assert mixed.loc.dtype == mixed.log_scale.dtype == mixed.rsample().dtype == torch.float32


@pytest.mark.parametrize("batch_shape", [(2, 3), (4, 2, 3)])
def test_expand(batch_shape: tuple[int, ...]) -> None:
    q, normal = pair()
    for ours, theirs in (
        (q.expand(batch_shape), normal.expand(batch_shape)),
        (q.expand_by((4,)), normal.expand_by((4,))),
        (q.to_event(1).expand((4, 2)), normal.to_event(1).expand((4, 2))),
        (
            q.mask(torch.tensor([[True], [False]])).expand((4, 2, 3)),
            normal.mask(torch.tensor([[True], [False]])).expand((4, 2, 3)),
        ),
    ):
        assert ours.batch_shape == theirs.batch_shape
        assert ours.event_shape == theirs.event_shape
        value = theirs.sample()
        torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
        draw = ours.rsample()
        torch.testing.assert_close(ours.log_prob(draw), theirs.log_prob(draw))
    assert type(q.expand(batch_shape)) is LogScaleNormal


def test_a_subclass_must_say_how_it_expands() -> None:
    class Shifted(LogScaleNormal):
        def __init__(self, loc: Tensor) -> None:
            super().__init__(loc + 1, torch.zeros(()))

    with pytest.raises(NotImplementedError, match=r"must also define a custom \.expand"):
        Shifted(torch.zeros(2)).expand((3, 2))


def test_mask_and_event_dimensions() -> None:
    q, normal = pair()
    value = normal.sample()
    torch.testing.assert_close(q.to_event(2).log_prob(value), normal.to_event(2).log_prob(value))
    masked = q.mask(torch.tensor([True, False, True]))
    assert (masked.log_prob(value)[:, 1] == 0).all()


@pytest.mark.parametrize("name", ["loc", "log_scale"])
def test_validation_names_the_argument(name: str) -> None:
    arguments = {"loc": torch.zeros(2), "log_scale": torch.zeros(2), name: torch.tensor([0.0, math.nan])}
    with pytest.raises(ValueError, match=f"Expected parameter {name} .* of distribution LogScaleNormal"):
        LogScaleNormal(**arguments)
    LogScaleNormal(**arguments, validate_args=False)


def test_validation_of_values() -> None:
    q, _ = pair()
    with pytest.raises(ValueError, match="not broadcastable"):
        q.log_prob(torch.zeros(4))
    with pytest.raises(ValueError, match="Expected value argument"):
        q.log_prob(torch.full((3,), math.nan))
    with pytest.raises(ValueError, match="must be a Tensor"):
        q.log_prob(0.0)  # type: ignore[arg-type]
    assert LogScaleNormal(0.0, 0.0, validate_args=False).log_prob(torch.tensor(math.nan)).isnan()


def test_repr_names_the_parameters() -> None:
    assert repr(LogScaleNormal(torch.zeros(2), torch.zeros(2))).startswith("LogScaleNormal(loc: ")


def test_pickle_and_deepcopy() -> None:
    q, _ = pair()
    draw = q.rsample()
    for other in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q), copy.deepcopy(q.to_event(1)).base_dist):
        assert type(other) is LogScaleNormal
        torch.testing.assert_close(other.log_prob(draw), q.log_prob(draw))
        assert other.rsample().shape == (2, 3)


def test_moments_of_draws() -> None:
    q = LogScaleNormal(torch.tensor([1.0, -2.0]), torch.tensor([0.0, -1.0]))
    draws = q.sample((100_000,))
    torch.testing.assert_close(draws.mean(0), q.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.std(0), q.scale, rtol=0.02, atol=0)


def test_tails_of_the_cdf() -> None:
    q = LogScaleNormal(torch.tensor(0.0), torch.tensor(0.0))
    value = torch.tensor([-30.0, -10.0, 0.0])
    expected = torch.tensor([float(mpmath.ncdf(v)) for v in value.tolist()])
    torch.testing.assert_close(q.cdf(value), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(q.icdf(expected), value, rtol=1e-12, atol=1e-15)


def test_gradient_of_log_prob() -> None:
    loc, log_scale = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    value = torch.randn(5, requires_grad=True)

    def log_prob(loc: Tensor, log_scale: Tensor, value: Tensor) -> Tensor:
        return LogScaleNormal(loc, log_scale).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, (loc, log_scale, value))
    assert torch.autograd.gradgradcheck(log_prob, (loc, log_scale, value))


# Its own draws --------------------------------------------------------------------------------------


def mean_error(q: dist.Normal) -> float:
    """Mean of log q over its own draws, less the negative entropy: 0 but for the Monte Carlo error."""
    draws = q.sample((200_000,))
    entropy = 0.5 + HALF_LOG_2PI + q.scale.double().log()
    return (q.log_prob(draws).double().mean(0) + entropy).item()


@pytest.mark.parametrize(
    ("dtype", "loc", "scale", "errors_of_normal"),
    [(torch.float32, 1.0, 1e-8, (0.4, 0.6)), (torch.bfloat16, 1.0, 1e-2, (0.005, 0.3))],
    ids=str,
)
def test_log_prob_of_own_draws(
    dtype: torch.dtype, loc: float, scale: float, errors_of_normal: tuple[float, float]
) -> None:
    mean, log_scale = torch.tensor(loc, dtype=dtype), torch.tensor(math.log(scale), dtype=dtype)
    # 200,000 draws: -ε²/2 has a standard error of 0.0016
    assert abs(mean_error(LogScaleNormal(mean, log_scale))) < 0.006
    least, most = errors_of_normal
    assert least < abs(mean_error(dist.Normal(mean, log_scale.exp()))) < most


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-8), (torch.bfloat16, 1e-2)], ids=str)
def test_log_prob_of_an_own_draw_is_that_of_its_noise(dtype: torch.dtype, scale: float) -> None:
    loc = torch.ones(1000, dtype=dtype)
    log_scale = torch.full((1000,), math.log(scale), dtype=dtype)
    q = LogScaleNormal(loc, log_scale)
    torch.manual_seed(3)
    draw = q.rsample()
    torch.manual_seed(3)
    eps = torch.randn(1000, dtype=torch.float32)
    log_prob = q.log_prob(draw)
    assert draw.dtype == dtype
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, -0.5 * eps**2 - log_scale.float() - HALF_LOG_2PI)
    # a Normal has 0.12 nat of error per draw at this ratio in bfloat16, and half a nat in float32
    theirs = dist.Normal(loc, log_scale.exp()).log_prob(draw).float()
    assert (theirs - log_prob).abs().mean() > 0.05


def test_every_way_to_draw_is_remembered() -> None:
    q = LogScaleNormal(torch.ones(200, dtype=torch.float32), torch.tensor(-20.0, dtype=torch.float32))
    for own in (q, q.expand((5, 200)), q.expand_by((5,)), q.to_event(1), q.to_event(1).expand((5,))):
        for draw in (own.rsample(), own.sample(), own(), own.rsample((3,))):
            assert (draw == 1).all()  # σ is below the precision of the location
            per_dimension = own.log_prob(draw).mean() / (200 if own.event_dim else 1)
            assert per_dimension - 20.0 == pytest.approx(-0.5 - HALF_LOG_2PI, abs=0.25)  # standard error 0.05
            without_noise = own.log_prob(draw.clone()).mean() / (200 if own.event_dim else 1)
            assert without_noise - 20.0 == pytest.approx(-HALF_LOG_2PI, abs=1e-4)


def test_a_changed_draw_is_scored_from_its_value() -> None:
    q, normal = pair()
    draw = q.sample()
    draw.add_(1.0)
    torch.testing.assert_close(q.log_prob(draw), normal.log_prob(draw))
    draw = q.sample((4,))
    for part in (draw[0], draw.reshape(4, 2, 3)[1:], draw[..., :1]):
        torch.testing.assert_close(q.log_prob(part), normal.log_prob(part))


def test_changed_parameters_are_scored_anew() -> None:
    loc, log_scale = torch.zeros(3), torch.zeros(3)
    q = LogScaleNormal(loc, log_scale)
    draw = q.sample()
    log_scale.add_(1.0)
    torch.testing.assert_close(q.log_prob(draw), dist.Normal(loc, log_scale.exp()).log_prob(draw))


@pytest.mark.parametrize("distribution", [LogScaleNormal, lambda m, s: dist.Normal(m, s.exp())])
def test_pathwise_gradient_is_the_total_derivative(distribution: Callable[..., dist.Normal]) -> None:
    loc, log_scale = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    q = distribution(loc, log_scale)
    gradients = torch.autograd.grad(q.log_prob(q.rsample((2,))).sum(), (loc, log_scale), allow_unused=True)
    to_loc, to_log_scale = (torch.zeros(3) if g is None else g for g in gradients)
    torch.testing.assert_close(to_loc, torch.zeros(3))
    torch.testing.assert_close(to_log_scale, torch.full((3,), -2.0))


def test_pathwise_gradient_is_exact_where_a_normals_drowns() -> None:
    loc = torch.ones(1000, dtype=torch.float32, requires_grad=True)
    log_scale = torch.full((1000,), -18.0, dtype=torch.float32, requires_grad=True)

    def gradient(q: dist.Normal) -> Tensor:
        z = q.rsample()
        (g,) = torch.autograd.grad((q.log_prob(z) + z.square()).sum(), loc)
        return g

    torch.testing.assert_close(gradient(LogScaleNormal(loc, log_scale)), 2 * torch.ones_like(loc))
    assert (gradient(dist.Normal(loc, log_scale.exp())) - 2).abs().max() > 1


def score(loc: Tensor, log_scale: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    standardized = ((value - loc) / log_scale.exp()).detach()
    return standardized / log_scale.exp().detach(), standardized.square() - 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda q: q.sample(),
        lambda q: q.rsample().detach(),
        lambda q: q.rsample().detach_(),
        lambda q: q.has_rsample_(False)(),
    ],
    ids=["sample", "detach", "detach in place", "has_rsample_(False)"],
)
def test_a_draw_without_gradient_has_the_score(draw: Callable[[LogScaleNormal], Tensor]) -> None:
    loc, log_scale = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    q = LogScaleNormal(loc, log_scale)
    value = draw(q)
    gradients = torch.autograd.grad(q.log_prob(value).sum(), (loc, log_scale))
    for ours, theirs in zip(gradients, score(loc, log_scale, value), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_score_of_an_own_draw_is_exact_and_twice_differentiable() -> None:
    loc = torch.ones(500, dtype=torch.float32, requires_grad=True)
    log_scale = torch.full((500,), -18.0, dtype=torch.float32, requires_grad=True)
    q = LogScaleNormal(loc, log_scale)
    torch.manual_seed(5)
    value = q.sample()
    torch.manual_seed(5)
    eps = torch.randn(500, dtype=torch.float32)
    to_loc, to_log_scale = torch.autograd.grad(q.log_prob(value).sum(), (loc, log_scale), create_graph=True)
    torch.testing.assert_close(to_loc, eps / log_scale.exp())
    torch.testing.assert_close(to_log_scale, eps**2 - 1)
    second = torch.autograd.grad(to_log_scale.sum(), (loc, log_scale))
    torch.testing.assert_close(second[0], -2 * eps / log_scale.exp())
    torch.testing.assert_close(second[1], -2 * eps**2)


def test_a_draw_as_a_variable() -> None:
    """A draw that is asked for its gradient afterwards is a variable like any other."""
    q, normal = pair()
    draw = q.sample().requires_grad_()
    (ours,) = torch.autograd.grad(q.log_prob(draw).sum(), draw)
    (theirs,) = torch.autograd.grad(normal.log_prob(draw).sum(), draw)
    torch.testing.assert_close(ours, theirs)


def test_path_derivative() -> None:
    loc, log_scale = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    q = LogScaleNormal(loc, log_scale)
    draw = q.rsample()
    frozen = LogScaleNormal(loc.detach(), log_scale.detach())
    to_loc, to_log_scale = torch.autograd.grad(
        frozen.log_prob(draw).sum(), (loc, log_scale), retain_graph=True
    )
    eps = ((draw - loc) / log_scale.exp()).detach()
    torch.testing.assert_close(to_loc, -eps / log_scale.exp())
    torch.testing.assert_close(to_log_scale, -eps.square())
    # a shallow copy whose parameters were detached is another distribution, too
    frozen = copy.copy(q)
    frozen.loc, frozen.log_scale = q.loc.detach(), q.log_scale.detach()
    (again,) = torch.autograd.grad(frozen.log_prob(draw).sum(), loc, retain_graph=True)
    torch.testing.assert_close(again, to_loc)
    # the same derivative with respect to the draw alone, by the way that the docstring names
    (to_draw,) = torch.autograd.grad(q.log_prob(draw.clone()).sum(), draw)
    torch.testing.assert_close(to_draw, -eps / log_scale.exp())


# Far out --------------------------------------------------------------------------------------------

LOG_SCALES = [math.log(10.0) * power for power in (-30, -23, -20, -10, 0, 10, 19, 30)]


@pytest.mark.parametrize("log_scale", LOG_SCALES)
@pytest.mark.parametrize("standardized", [-3.0, -1e-3, 0.0, 0.5, 40.0])
def test_log_prob_and_gradient_at_any_scale(log_scale: float, standardized: float) -> None:
    loc = torch.zeros((), dtype=torch.float32, requires_grad=True)
    log_sigma = torch.tensor(log_scale, dtype=torch.float32, requires_grad=True)
    value = torch.tensor(standardized * math.exp(log_scale), dtype=torch.float32, requires_grad=True)
    log_prob = LogScaleNormal(loc, log_sigma).log_prob(value)
    gradients = torch.autograd.grad(log_prob, (loc, log_sigma, value))

    sigma = mpmath.exp(mpmath.mpf(log_sigma.item()))
    u = mpmath.mpf(value.item()) / sigma
    expected = [u / sigma, u**2 - 1, -u / sigma]
    # log σ has a relative precision of 6e-8, and so u one of 6e-8 · |log σ|
    rtol = 1e-6 + 2.4e-7 * abs(log_scale)
    torch.testing.assert_close(
        log_prob.detach().double(),
        torch.tensor(float(-(u**2) / 2 - mpmath.log(sigma)) - HALF_LOG_2PI),
        rtol=rtol,
        atol=1e-6,
    )
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(
            ours.double(), torch.tensor(float(theirs)), rtol=rtol, atol=1e-6 * (theirs == u**2 - 1)
        )


def test_where_a_normal_fails() -> None:
    for log_scale in (-48.0, -54.0, -69.0):
        loc = torch.zeros((), dtype=torch.float32, requires_grad=True)
        scale = torch.tensor(log_scale, dtype=torch.float32).exp()
        theirs = dist.Normal(loc, scale).log_prob(0.5 * scale)
        (gradient,) = torch.autograd.grad(theirs, loc)
        assert not (theirs.isfinite() and gradient.isfinite())


@pytest.mark.parametrize("log_scale", [-5e7, -1e4, -200.0, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_never_nan(log_scale: float, offset: float) -> None:
    loc = torch.zeros((), dtype=torch.float32, requires_grad=True)
    log_sigma = torch.tensor(log_scale, dtype=torch.float32, requires_grad=True)
    q = LogScaleNormal(loc, log_sigma)
    value = torch.tensor(offset, dtype=torch.float32)
    log_prob = q.log_prob(value)
    gradients = torch.autograd.grad(log_prob, (loc, log_sigma))
    assert not any(t.isnan() for t in (log_prob, *gradients, q.cdf(value), q.entropy()))
    if offset == 0.0:
        torch.testing.assert_close(log_prob, -log_sigma - torch.tensor(HALF_LOG_2PI, dtype=torch.float32))
        assert gradients == (0.0, -1.0)
    elif log_scale < 0:
        assert log_prob == -math.inf
    own = q.log_prob(q.sample())
    assert own.isfinite()


# KL -------------------------------------------------------------------------------------------------


def exact_kl(loc_q: float, log_q: float, loc_p: float, log_p: float) -> float:
    d = mpmath.mpf(log_q) - mpmath.mpf(log_p)
    shift = (mpmath.mpf(loc_q) - mpmath.mpf(loc_p)) / mpmath.exp(mpmath.mpf(log_p))
    with mpmath.workdps(60):
        return float((mpmath.expm1(2 * d) - 2 * d + shift**2) / 2)


PAIRS: dict[str, Callable[..., tuple[dist.Normal, dist.Normal]]] = {
    "log-scale || log-scale": lambda a, b, c, d: (LogScaleNormal(a, b), LogScaleNormal(c, d)),
    "log-scale || normal": lambda a, b, c, d: (LogScaleNormal(a, b), dist.Normal(c, d.exp())),
    "normal || log-scale": lambda a, b, c, d: (dist.Normal(a, b.exp()), LogScaleNormal(c, d)),
    "log-scale || torch's normal": lambda a, b, c, d: (
        LogScaleNormal(a, b),
        torch.distributions.Normal(c, d.exp()),
    ),
}
all_pairs = pytest.mark.parametrize("kind", PAIRS)


@all_pairs
@settings(deadline=None)
@given(st.tuples(*[st.floats(-5, 5, width=32) for _ in range(4)]))
def test_kl_is_the_closed_form(kind: str, values: tuple[float, ...]) -> None:
    q, p = PAIRS[kind](*(torch.tensor(v, dtype=torch.float64) for v in values))
    assert kl_divergence(q, p).item() == pytest.approx(exact_kl(*values), rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("difference", [1e-3, -1e-5, 1e-7, -1e-8])
def test_kl_of_near_equals(difference: float) -> None:
    zero = torch.zeros(())
    q, p = LogScaleNormal(zero, torch.tensor(difference)), LogScaleNormal(zero, zero)
    assert kl_divergence(q, p).item() == pytest.approx(exact_kl(0.0, difference, 0.0, 0.0), rel=1e-6)


def test_kl_to_itself_is_zero() -> None:
    q, normal = pair()
    assert torch.equal(kl_divergence(q, q), torch.zeros(2, 3))
    torch.testing.assert_close(kl_divergence(q, normal), torch.zeros(2, 3), rtol=0, atol=1e-14)


@pytest.mark.parametrize("log_q", LOG_SCALES)
@pytest.mark.parametrize("log_p", LOG_SCALES)
@all_pairs
def test_kl_at_any_scale(kind: str, log_q: float, log_p: float) -> None:
    parameters = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (0.0, log_q, 0.0, log_p)]
    with torch.no_grad():
        parameters[0] += 0.3 * math.exp(log_p)
    q, p = PAIRS[kind](*parameters)
    kl = kl_divergence(q, p)
    gradients = torch.autograd.grad(kl, parameters)
    assert not any(g.isnan() for g in gradients)
    expected = exact_kl(*(t.item() for t in parameters))
    if expected > 3e38:
        assert kl == math.inf
    else:
        # relative error of σ_q/σ_p: 6e-8 for each of the two logs, and as much again where σ was formed
        rtol = 1e-6 + 5e-7 * (abs(log_q) + abs(log_p))
        assert kl.item() == pytest.approx(expected, rel=rtol)
        # dKL/dσ of a plain Normal need not be representable; dKL/dlog σ is where the KL is.
        assert gradients[1].isfinite() or kind == "normal || log-scale"


@all_pairs
def test_kl_broadcasts_and_sums_events(kind: str) -> None:
    a, b, c, d = torch.randn(4, 1, 3), torch.randn(3), torch.randn(2, 1), torch.randn(())
    q, p = PAIRS[kind](a, b, c, d)
    reference = kl_divergence(torch.distributions.Normal(a, b.exp()), torch.distributions.Normal(c, d.exp()))
    torch.testing.assert_close(kl_divergence(q, p), reference)
    if isinstance(p, dist.Normal):
        p = p.expand((2, 3)).to_event(1)
        q = q.expand((4, 2, 3)).to_event(1)
        torch.testing.assert_close(kl_divergence(q, p), reference.sum(-1))


def test_kl_to_a_multivariate_normal() -> None:
    q, normal = pair()
    p = dist.MultivariateNormal(torch.zeros(3), torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    torch.testing.assert_close(kl_divergence(q.to_event(1), p), kl_divergence(normal.to_event(1), p))


# Under torch's transformations ----------------------------------------------------------------------


def test_vmap() -> None:
    loc, log_scale, value = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)

    def log_prob(loc: Tensor, log_scale: Tensor, value: Tensor) -> Tensor:
        return LogScaleNormal(loc, log_scale, validate_args=False).log_prob(value)

    torch.testing.assert_close(
        torch.vmap(log_prob)(loc, log_scale, value), LogScaleNormal(loc, log_scale).log_prob(value)
    )
    draws = torch.vmap(
        lambda m, s: LogScaleNormal(m, s, validate_args=False).rsample((1000,)), randomness="different"
    )(loc, log_scale)
    assert draws.shape == (4, 1000, 3)
    torch.testing.assert_close(draws.mean(1), loc, rtol=0, atol=0.2 * log_scale.exp().max().item())
    assert draws.std(0).min() > 0


@pytest.mark.parametrize(
    "gradient",
    [
        lambda m, s: torch.func.grad(log_prob_of_own_draw, (0, 1))(m, s),
        lambda m, s: torch.vmap(torch.func.grad(log_prob_of_own_draw, (0, 1)), randomness="different")(m, s),
        lambda m, s: torch.func.grad(
            lambda m, s: torch.vmap(log_prob_of_own_draw, randomness="different")(m, s).sum(), (0, 1)
        )(m, s),
        lambda m, s: torch.func.jacrev(log_prob_of_own_draw, (0, 1))(m, s),
    ],
    ids=["grad", "vmap of grad", "grad of vmap", "jacrev"],
)
def test_total_derivative_under_torch_func(gradient: Callable[..., tuple[Tensor, Tensor]]) -> None:
    to_loc, to_log_scale = gradient(torch.randn(4, 3), torch.randn(4, 3))
    torch.testing.assert_close(to_loc, torch.zeros(4, 3))
    torch.testing.assert_close(to_log_scale, -torch.ones(4, 3))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_captured_as_a_graph(mode: str) -> None:
    def step(loc: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
        q = LogScaleNormal(loc, log_scale, validate_args=False)
        z = q.rsample()
        log_prob = q.log_prob(z)
        prior = dist.Normal(torch.zeros(3), torch.ones(3), validate_args=False)
        kl = kl_divergence(q, prior)
        return z, log_prob, kl, *torch.autograd.grad((log_prob + kl + z.square()).sum(), (loc, log_scale))

    parameters = [torch.randn(3, requires_grad=True) for _ in range(4)]
    graph = make_fx(step, tracing_mode=mode)(*parameters[:2])
    assert [str(node.target) for node in graph.graph.nodes].count("aten.randn.default") == 1
    torch.manual_seed(2)
    captured = graph(*parameters[2:])
    torch.manual_seed(2)
    for ours, eager in zip(captured, step(*parameters[2:]), strict=True):
        torch.testing.assert_close(ours, eager)


# In Pyro --------------------------------------------------------------------------------------------

DATA = torch.tensor([0.9, 1.3, 1.1])


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.6), obs=x)


def guide_with(distribution: Callable[[Tensor, Tensor], dist.Normal]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        log_scale = pyro.param("log_scale", torch.full((2,), -1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", distribution(x[:, None] * loc, log_scale.expand(len(x), 2)).to_event(1))

    return guide


GUIDES = {
    "log-scale": guide_with(LogScaleNormal),
    "normal": guide_with(lambda loc, log_scale: dist.Normal(loc, log_scale.exp())),
}


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(max_plate_nesting=1),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(max_plate_nesting=1),
    ],
    ids=["one particle", "particles", "mean field"],
)
def test_elbo_and_gradients_are_those_of_a_normal(elbo: Trace_ELBO) -> None:
    results = {}
    for name, guide in GUIDES.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = elbo.loss_and_grads(model, guide, DATA)
        store = pyro.get_param_store()
        results[name] = (loss, *(store._params[p].grad for p in ("loc", "log_scale")))
    for ours, theirs in zip(results["log-scale"], results["normal"], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_wake_sleep_gets_the_score() -> None:
    """Reweighted wake-sleep differentiates log q at draws without gradient."""
    results = {}
    for name, guide in GUIDES.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = ReweightedWakeSleep(4, insomnia=1.0, vectorize_particles=True, max_plate_nesting=1)
        elbo.loss_and_grads(model, guide, DATA)
        results[name] = [pyro.get_param_store()._params[p].grad for p in ("loc", "log_scale")]
    for ours, theirs in zip(results["log-scale"], results["normal"], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_mean_field_elbo_uses_the_analytic_kl() -> None:
    def prior_only(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    losses = {TraceMeanField_ELBO().loss(prior_only, GUIDES["log-scale"], DATA) for _ in range(5)}
    assert len(losses) == 1
    q = LogScaleNormal(torch.zeros(3, 2), torch.full((3, 2), -1.0))
    assert losses.pop() == pytest.approx(kl_divergence(q, dist.Normal(0.0, 1.0)).sum().item())


def test_trace_scores_the_draw_exactly() -> None:
    def guide() -> None:
        with pyro.plate("data", 1000):
            pyro.sample(
                "z",
                LogScaleNormal(
                    torch.ones(2, dtype=torch.float32), torch.full((2,), -18.0, dtype=torch.float32)
                ).to_event(1),
            )

    trace = pyro.poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    log_prob = trace.nodes["z"]["log_prob"]
    expected = 2 * (-0.5 + 18.0 - HALF_LOG_2PI)
    assert log_prob.mean().item() == pytest.approx(
        expected, abs=0.1
    )  # standard error 0.03; a Normal: 1 nat off


def test_trains_under_svi() -> None:
    elbo = TraceMeanField_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, GUIDES["log-scale"], pyro.optim.Adam({"lr": 0.02}), elbo)
    for _ in range(200):
        svi.step(DATA)
    # Each coordinate has a precision of 1 from the prior and 1/0.36 from its share in the sum.
    log_scale = pyro.param("log_scale").detach()
    torch.testing.assert_close(log_scale, torch.full((2,), -0.5 * math.log(1 + 1 / 0.36)), rtol=0, atol=0.05)


# The same σ by any map ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_scales_give_equal_guides(dtype: torch.dtype) -> None:
    loc = torch.randn(50, 4, dtype=dtype)
    scale = torch.empty(50, 4, dtype=dtype).uniform_(0.05, 0.9)
    prior = dist.Normal(torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype))
    results = []
    for name in scales.names():
        scale_map = scales.get(name)
        q = LogScaleNormal(loc, scale_map.log_scale(scale_map.inv(scale)))
        torch.manual_seed(1)
        draw = q.rsample()
        results.append((q.scale, draw, q.log_prob(draw), q.log_prob(loc), kl_divergence(q, prior)))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            torch.testing.assert_close(ours, first, rtol=tolerance, atol=tolerance)
