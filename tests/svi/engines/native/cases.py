"""Pairs for the native engine: one by name, and any number at random; and eager steps to compare with."""

import dataclasses
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pyro_vae import guides, models
from pyro_vae.models import likelihoods
from pyro_vae.pairs.isolation import empty_store, isolated
from pyro_vae.svi.engines.functions import StepTerms
from pyro_vae.svi.engines.gradients import capture_step, gradient_step
from pyro_vae.svi.engines.native import NativeFunction
from pyro_vae.svi.objectives.elbo import ELBO
from tests import seeds

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")

MAPS = (
    "logvar",
    "logstd",
    "softplus",
    "softplus-var",
    "explinear",
    "stdplus",
    "softclip",
    "bounded",
    "clamp",
    "abs",
)
ACTIVATIONS = ("relu", "tanh", "softplus", "elu", "gelu", "sigmoid", "silu", "leaky-relu")
LIKELIHOODS: dict[str, Callable[[], likelihoods.Likelihood]] = {
    "bernoulli": likelihoods.Bernoulli,
    "binomial": lambda: likelihoods.Binomial(16),
    "normal": likelihoods.Normal,
    "normal by feature": lambda: likelihoods.Normal(dispersion="feature"),
    "normal predicted": lambda: likelihoods.Normal(dispersion="predicted"),
    "poisson": likelihoods.Poisson,
    "student-t": likelihoods.StudentT,
    "continuous-bernoulli": likelihoods.ContinuousBernoulli,
    "categorical": lambda: likelihoods.Categorical(3),
}


@dataclass(frozen=True)
class Case:
    """A pair, its data and how it is fitted."""

    features: int = 6
    hidden: tuple[int, ...] = (7,)
    latent: int = 3
    batch: int = 8
    scale: str = "softplus"
    activation: str = "relu"
    likelihood: str = "bernoulli"
    objective: ELBO = field(default_factory=ELBO)
    max_norm: float | None = None
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def make(self) -> "Made":
        torch.manual_seed(self.seed)
        torch.set_default_dtype(self.dtype)
        likelihood = LIKELIHOODS[self.likelihood]()
        decoder = models.MLPDecoder(
            self.latent, list(self.hidden), self.features * likelihood.outputs, activation=self.activation
        )
        model = models.VAE(decoder, self.latent, likelihood)
        encoder = models.MLPEncoder(self.features, list(self.hidden), activation=self.activation)
        options = {
            "bounded": {"low": 0.01, "high": 3.0},
            "softclip": {"low": 0.01, "high": 10.0},
            "clamp": {"low": 1e-3},
        }
        scale = guides.scales.get(self.scale, **options.get(self.scale, {}))
        guide = guides.AmortizedNormal(model, encoder, scale=scale)
        data = model.sample(3 * self.batch).to(self.dtype)
        if self.likelihood == "continuous-bernoulli":
            data = data.clamp(1e-3, 1 - 1e-3)
        with torch.no_grad():
            guide(data[: self.batch])  # lazy parameters, and a look at batches of this size
        for parameter in guide.parameters():
            nn.init.normal_(parameter, std=0.3)
        return Made(self, model, guide, data)


@dataclass
class Made:
    case: Case
    model: Any
    guide: Any
    data: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        return list({id(p): p for m in (self.model, self.guide) for p in m.parameters()}.values())

    def capture(self) -> fx.GraphModule:
        with isolated(self.model, self.guide, state=empty_store(), seed=1):
            return capture_step(
                self.case.objective,
                self.model,
                self.guide,
                self.parameters,
                (self.data[: self.case.batch],),
                torch.ones((), dtype=self.case.dtype),
            )

    def index(self, steps: int) -> Tensor:
        generator = seeds.generator(self.case.seed)
        return torch.stack(
            [torch.randperm(len(self.data), generator=generator)[: self.case.batch] for _ in range(steps)]
        )

    def native(self, optimizer: torch.optim.Optimizer, **options: Any) -> NativeFunction:
        options = {"max_norm": self.case.max_norm, **options}
        return NativeFunction(
            self.capture(), self.parameters, (self.data[: self.case.batch],), optimizer, **options
        )


def adam(parameters: list[Tensor], **options: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, **{"lr": 0.01, **options})


def native_steps(
    native: NativeFunction, data: Tensor, index: Tensor, weights: Tensor
) -> tuple[StepTerms, Tensor]:
    """The steps from seed 7, and the number that the random stream would give next."""
    torch.manual_seed(7)
    return native.run((data,), index, weights), torch.rand(())


def eager_steps(
    made: Made,
    optimizer: torch.optim.Optimizer,
    index: Tensor,
    weights: Tensor,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> tuple[StepTerms, Tensor]:
    """What the native steps should do, by Pyro itself."""
    rows = []
    with isolated(made.model, made.guide, state=empty_store(), seed=7):
        for k, weight in enumerate(weights):
            loss, kl, reconstruction, *gradients = gradient_step(
                made.case.objective, made.model, made.guide, made.parameters, (made.data[index[k]],), weight
            )
            norm = nn.utils.get_total_norm(gradients)
            bad = not (math.isfinite(float(norm)) and math.isfinite(float(loss)))
            rows.append(torch.stack([loss, kl, reconstruction, norm, torch.tensor(bad).to(loss)]))
            if bad:
                continue
            for parameter, gradient in zip(made.parameters, gradients, strict=True):
                clip = min(1.0, (made.case.max_norm or math.inf) / float(norm))
                parameter.grad = gradient * clip
            optimizer.step()
            if schedule is not None:
                schedule.step()
        after = torch.rand(())
    terms = torch.stack(rows, 1)
    return StepTerms(*terms[:4], terms[4].bool()), after


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    """Relative to the whole."""
    a, b = (torch.cat([p.detach().flatten() for p in ps]).double() for ps in (some, others))
    return float((a - b).norm() / b.norm())


def random_case(seed: int) -> Case:
    """Any network, shape, map, likelihood, objective and number type that the engine should know.

    Two kinds are drawn in double precision only, because in single precision Pyro itself is 1e-5 to 1e-4 from
    the exact steps: the continuous Bernoulli, whose normalizer loses its digits near p = ½, and the clamped
    scale, whose gradient jumps.
    """
    draw = random.Random(seed)
    case = Case(
        features=draw.choice([1, 2, 5, 16, 33, 70, 130]),
        hidden=tuple(draw.choice([1, 3, 8, 16, 37, 64, 100]) for _ in range(draw.choice([1, 1, 2]))),
        latent=draw.choice([1, 2, 3, 8, 17]),
        batch=draw.choice([1, 2, 7, 16, 61, 128]),
        scale=draw.choice(MAPS),
        activation=draw.choice(ACTIVATIONS),
        likelihood=draw.choice(list(LIKELIHOODS)),
        objective=ELBO(num_particles=draw.choice([1, 1, 1, 2, 3]), analytic_kl=draw.random() < 0.6),
        max_norm=draw.choice([None, None, 0.5]),
        dtype=draw.choice([torch.float32, torch.float32, torch.float64]),
        seed=seed,
    )
    hard = case.likelihood == "continuous-bernoulli" or case.scale == "clamp"
    return dataclasses.replace(case, dtype=torch.float64) if hard else case


def assert_follows_eager(case: Case, steps: int = 6, **options: Any) -> None:
    """Terms, parameters and the random stream, over some steps with a KL that warms up.

    Adam divides a gradient by its own size, so that of one that is all but zero it makes whole steps of
    rounding errors, whoever computes it. In single precision eps is therefore large here.
    """
    native_side, eager_side = case.make(), case.make()
    eps = 1e-2 if case.dtype == torch.float32 else 1e-8
    weights = torch.linspace(0.2, 1.0, steps)
    index = native_side.index(steps)
    native = native_side.native(adam(native_side.parameters, eps=eps), **options)
    given, after = native_steps(native, native_side.data, index, weights)
    wanted, wanted_after = eager_steps(eager_side, adam(eager_side.parameters, eps=eps), index, weights)
    assert torch.equal(after, wanted_after), "the random streams differ"
    single = case.dtype == torch.float32
    scale = wanted.loss.abs() + wanted.kl.abs() + wanted.reconstruction.abs()
    for name in ("loss", "kl", "reconstruction"):
        error = ((getattr(given, name) - getattr(wanted, name)).abs() / scale).max()
        assert error < (2e-5 if single else 1e-10), f"{name}: {error:.1e} {case}"
    tolerance = 1e-5 if single else 1e-9
    assert distance(native_side.parameters, eager_side.parameters) < tolerance, case
    assert torch.equal(given.bad, wanted.bad)
