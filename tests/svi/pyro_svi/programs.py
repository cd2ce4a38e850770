"""Programs of the kinds that Pyro's users write, small: a pair, its batches and a loss of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints


class Program(NamedTuple):
    """What an SVI is made of, and what its steps are called with."""

    model: Any
    guide: Any
    loss: Any
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


PROGRAMS: dict[str, Callable[[], Program]] = {}


def program(make: Callable[[], Program]) -> Callable[[], Program]:
    """Add to :data:`PROGRAMS`."""
    PROGRAMS[make.__name__] = make
    return make


def batches(*shape: int, count: int = 2) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls with one tensor of normal noise."""
    return [((torch.randn(shape),), {}) for _ in range(count)]


class VAE(nn.Module):
    """Of Pyro's tutorial."""

    def __init__(self, *, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        middle = [nn.BatchNorm1d(8)] if norm else []
        self.encoder = nn.Sequential(nn.Linear(5, 8), *middle, nn.Softplus(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(
            nn.Linear(2, 8), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(8, 5)
        )

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), x.new_ones(len(x), 2)).to_event(1))
            probs = torch.sigmoid(self.decoder(z))
            pyro.sample("x", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=torch.sigmoid(x))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, torch.exp(raw)).to_event(1))


@program
def vae_of_the_tutorial() -> Program:
    vae = VAE()
    return Program(vae.model, vae.guide, Trace_ELBO(), batches(6, 5))


@program
def vae_with_dropout_and_batch_norm() -> Program:
    vae = VAE(dropout=0.3, norm=True)
    return Program(vae.model, vae.guide, TraceMeanField_ELBO(), batches(6, 5))


@program
def semi_supervised() -> Program:
    decoder, encoder, classifier = nn.Linear(5, 4), nn.Linear(7, 4), nn.Linear(4, 3)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3) / 3), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            shape = torch.broadcast_shapes(y.shape[:-1], z.shape[:-1])
            features = torch.cat([z.expand(*shape, 2), y.expand(*shape, 3)], -1)
            pyro.sample("x", dist.Normal(decoder(features), 1.0).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("encoder", encoder)
        pyro.module("classifier", classifier)
        with pyro.plate("data"):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(x)))
            shape = torch.broadcast_shapes(y.shape[:-1], x.shape[:-1])
            both = torch.cat([x.expand(*shape, 4), y.expand(*shape, 3)], -1)
            loc, raw = encoder(both).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    y = dist.OneHotCategorical(torch.ones(6, 3) / 3).sample()
    calls = [((torch.randn(6, 4),), {}), ((torch.randn(6, 4), y), {})]
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    return Program(model, config_enumerate(guide), loss, calls)


@program
def topic_model() -> Program:
    decoder = nn.Sequential(nn.Linear(3, 7), nn.BatchNorm1d(7, affine=False), nn.Softmax(-1))
    encoder = nn.Linear(7, 6)

    def model(docs: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("documents", len(docs)):
            logs = pyro.sample("theta", dist.Normal(torch.zeros(len(docs), 3), 1.0).to_event(1))
            probs = decoder(torch.softmax(logs, -1))
            pyro.sample("words", dist.Multinomial(20, probs), obs=docs)

    def guide(docs: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("documents", len(docs)):
            loc, raw = encoder(docs).chunk(2, -1)
            pyro.sample("theta", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))

    draw = dist.Multinomial(20, torch.ones(7) / 7)
    return Program(model, guide, TraceMeanField_ELBO(), [((draw.sample((6,)),), {}) for _ in range(2)])


@program
def single_cell() -> Program:
    decoder, encoder = nn.Linear(4, 12), nn.Linear(6, 6)

    def model(counts: Tensor, batch: Tensor) -> None:
        pyro.module("decoder", decoder)
        dispersion = pyro.param("dispersion", lambda: torch.ones(6), constraint=constraints.positive)
        with pyro.plate("cells", len(counts)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            size = pyro.sample("size", dist.LogNormal(torch.tensor(2.0), 0.5))
            one_hot = nn.functional.one_hot(batch, 2).to(z.dtype)
            rate, gate = decoder(torch.cat([z, one_hot], -1)).chunk(2, -1)
            mean = size.unsqueeze(-1) * torch.softmax(rate, -1)
            logits = (mean + 1e-4).log() - dispersion.log()
            counted = dist.ZeroInflatedNegativeBinomial(dispersion, logits=logits, gate_logits=gate)
            pyro.sample("x", counted.to_event(1), obs=counts)

    def guide(counts: Tensor, batch: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("cells", len(counts)):
            loc, raw, size = encoder(counts.log1p()).split([2, 2, 2], -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))
            pyro.sample("size", dist.LogNormal(size[:, 0], size[:, 1].exp()))

    calls = [((torch.poisson(torch.full((6, 6), 3.0)), torch.randint(2, (6,))), {}) for _ in range(2)]
    return Program(model, guide, Trace_ELBO(), calls)


@program
def regression_of_a_module() -> Program:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](3, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
            return mean

    model = Regression()
    calls = [((torch.randn(8, 3), torch.randn(8)), {}) for _ in range(2)]
    return Program(model, AutoDiagonalNormal(model), Trace_ELBO(), calls)


@program
def mixture() -> Program:
    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=x)

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    return Program(model, guide, TraceEnum_ELBO(max_plate_nesting=1), batches(8))


@program
def hidden_markov() -> Program:
    @config_enumerate
    def model(sequence: Tensor) -> None:
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        with pyro.plate("states", 2):
            emission = pyro.sample("emission", dist.Normal(0.0, 3.0))
        state: Any = 0
        for t in pyro.markov(range(len(sequence))):
            state = pyro.sample(f"state_{t}", dist.Categorical(rows[state]))
            pyro.sample(f"y_{t}", dist.Normal(emission[state], 1.0), obs=sequence[t])

    guide = AutoDelta(poutine.block(model, expose=["rows", "emission"]))
    return Program(model, guide, TraceEnum_ELBO(max_plate_nesting=1), batches(4))


class Transition(nn.Module):
    """Of a deep Markov model."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.move, self.emit, self.infer = (
            nn.GRU(3, 4, batch_first=True),
            nn.Linear(2, 4),
            nn.Linear(2, 3),
            nn.Linear(6, 4),
        )

    def model(self, x: Tensor, lengths: Tensor, annealing: float = 1.0) -> None:
        pyro.module("dmm", self)
        z = torch.zeros(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                mask = (t < lengths).float()
                with poutine.scale(scale=annealing):
                    loc, raw = self.move(z).chunk(2, -1)
                    latent = dist.Normal(loc, raw.exp()).mask(mask.unsqueeze(-1) > 0).to_event(1)
                    z = pyro.sample(f"z_{t}", latent)
                observed = dist.Normal(self.emit(z), 1.0).mask(mask.unsqueeze(-1) > 0).to_event(1)
                pyro.sample(f"x_{t}", observed, obs=x[:, t])

    def guide(self, x: Tensor, lengths: Tensor, annealing: float = 1.0) -> None:
        pyro.module("dmm", self)
        features, _ = self.cell(x)
        z = torch.zeros(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.scale(scale=annealing):
                    loc, raw = self.infer(torch.cat([z, features[:, t]], -1)).chunk(2, -1)
                    mask = (t < lengths).unsqueeze(-1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, raw.exp()).mask(mask).to_event(1))


@program
def deep_markov_with_annealing() -> Program:
    net = Transition()
    calls = [((torch.randn(3, 3, 3), torch.tensor([3, 2, 1]), 0.2 + 0.1 * i), {}) for i in range(4)]
    return Program(net.model, net.guide, Trace_ELBO(), calls)


@program
def nested_plates_and_horseshoe() -> Program:
    def model(x: Tensor) -> None:
        top = pyro.sample("top", dist.HalfCauchy(torch.ones(())))
        with pyro.plate("groups", 3, dim=-2):
            loc = pyro.sample("loc", dist.Normal(0.0, top))
            with pyro.plate("data", x.shape[-1], dim=-1):
                pyro.sample("x", dist.StudentT(3.0, loc, 1.0), obs=x)

    return Program(model, AutoNormal(model), TraceMeanField_ELBO(), batches(3, 5))


@program
def subsampled_by_the_plate() -> Program:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    return Program(model, AutoMultivariateNormal(model), Trace_ELBO(), batches(9))


@program
def discrete_latent_by_its_score() -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.full((len(x),), 0.3)))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=logits))

    return Program(model, guide, TraceGraph_ELBO(), batches(7))


def latent_flow(transform: Any) -> Program:
    """A flow of Pyro's as a prior, which is asked for the density of the guide's draws."""

    def model(x: Tensor) -> None:
        pyro.module("flow", transform)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [transform]))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", lambda: torch.ones(2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))

    return Program(model, guide, Trace_ELBO(), batches(6, 2))


@program
def flow_prior() -> Program:
    return latent_flow(transforms.affine_coupling(2, hidden_dims=[4]))


@program
def masked_autoregressive_flow() -> Program:
    return latent_flow(transforms.affine_autoregressive(2, hidden_dims=[6]))


@program
def spline_flow() -> Program:
    return latent_flow(transforms.spline_coupling(2, hidden_dims=[6], count_bins=4))


@program
def cells_in_places() -> Program:
    """As cell2location: how many cells of each kind lie at each place, from counts of genes."""
    kinds, genes, places = 3, 5, 6
    signatures = torch.rand(kinds, genes) + 0.2

    def model(counts: Tensor, batch: Tensor) -> None:
        here = pyro.plate("places", len(counts), dim=-2)
        gain = pyro.sample("gain", dist.Gamma(torch.full((genes,), 20.0), 20.0).to_event(1))
        spread = pyro.sample("spread", dist.Exponential(torch.full((genes,), 3.0)).to_event(1))
        with pyro.plate("batches", 2):
            depth = pyro.sample("depth", dist.Gamma(10.0, 10.0))
        with here:
            cells = pyro.sample("cells", dist.Gamma(8.0, 1.0))
            shares = cells.unsqueeze(-1) / kinds * torch.ones(kinds)
            abundance = pyro.sample("abundance", dist.Gamma(shares, 1.0).to_event(1)).squeeze(-2)
        one_hot = nn.functional.one_hot(batch, 2).to(depth.dtype)
        mean = (abundance @ signatures) * gain * (one_hot @ depth).unsqueeze(-1)
        concentration = 1 / spread.square()
        with here, pyro.plate("genes", genes, dim=-1):
            pyro.sample("counts", dist.GammaPoisson(concentration, concentration / mean), obs=counts)

    call = torch.poisson(torch.full((places, genes), 4.0)), torch.randint(2, (places,))
    return Program(model, AutoNormal(model), Trace_ELBO(), [(call, {})])


@program
def deep_exponential_family() -> Program:
    """Two layers of sparse gamma latents beneath counts (Ranganath, Tang, Charlin and Blei, 2015)."""
    top, bottom, words = 2, 3, 5

    def model(x: Tensor) -> None:
        upper = pyro.sample("upper", dist.Gamma(0.3, 0.3).expand([top, bottom]).to_event(2))
        lower = pyro.sample("lower", dist.Gamma(0.3, 0.3).expand([bottom, words]).to_event(2))
        with pyro.plate("documents", len(x)):
            z_top = pyro.sample("z_top", dist.Gamma(0.3, 0.3).expand([top]).to_event(1))
            z = pyro.sample("z", dist.Gamma(0.3, 0.3 / (z_top @ upper + 1e-3)).to_event(1))
            pyro.sample("x", dist.Poisson(z @ lower + 1e-3).to_event(1), obs=x)

    def gamma(name: str, shape: tuple[int, ...]) -> Any:
        alpha = pyro.param(f"alpha_{name}", lambda: torch.full(shape, 0.8), constraint=constraints.positive)
        mean = pyro.param(f"mean_{name}", lambda: torch.ones(shape), constraint=constraints.positive)
        return dist.Gamma(alpha, alpha / mean)

    def guide(x: Tensor) -> None:
        pyro.sample("upper", gamma("upper", (top, bottom)).to_event(2))
        pyro.sample("lower", gamma("lower", (bottom, words)).to_event(2))
        with pyro.plate("documents", len(x)):
            pyro.sample("z_top", gamma("z_top", (len(x), top)).to_event(1))
            pyro.sample("z", gamma("z", (len(x), bottom)).to_event(1))

    return Program(model, guide, Trace_ELBO(), [((torch.poisson(torch.full((6, words), 2.0)),), {})])


@program
def importance_weighted() -> Program:
    vae = VAE()
    loss = RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return Program(vae.model, vae.guide, loss, batches(6, 5))


@program
def several_particles() -> Program:
    vae = VAE()
    return Program(vae.model, vae.guide, Trace_ELBO(num_particles=3), batches(6, 5))


@program
def dicts_and_nothing() -> Program:
    def model(data: dict[str, Any], *, mask: Tensor | None = None, kind: str = "wide") -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(data["x"])), poutine.mask(mask=True if mask is None else mask):
            scale = {"wide": 2.0, "narrow": 0.5}[kind] * data["options"][0]
            pyro.sample("y", dist.Normal(data["x"] @ w, scale), obs=data["y"])

    def call(mask: Tensor | None, kind: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        data = {"x": torch.randn(7, 3), "y": torch.randn(7), "options": [1.5, None]}
        return (data,), {"mask": mask, "kind": kind}

    mask = torch.tensor([True, False] * 3 + [True])
    calls = [call(None, "wide"), call(mask, "wide"), call(mask, "narrow")]
    return Program(model, AutoNormal(model), Trace_ELBO(), calls)


@program
def own_loss() -> Program:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def loss(model: Any, guide: Any, *args: Any) -> Tensor:
        tr = poutine.trace(guide).get_trace(*args)
        joint = poutine.trace(poutine.replay(model, trace=tr)).get_trace(*args)
        return (tr.log_prob_sum() - joint.log_prob_sum()) / 10

    return Program(model, AutoNormal(model), loss, batches(5))
