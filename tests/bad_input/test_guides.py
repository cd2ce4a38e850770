"""Wrong input to guides, scale maps and the Normal they are made of."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import guides, scales
from pyro_vae.guides import AmortizedFlow, AmortizedMultivariateNormal, AmortizedNormal, LogScaleNormal
from tests.bad_input.cases import Case, check, table

X = torch.zeros(4, 3, dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def one_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def outside(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def undeclared(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0))


def two_plates(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("items", 2):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(torch.ones(2)))


def nothing_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, 0])


class Returns(nn.Module):
    """An encoder that returns what it is told."""

    def __init__(self, features: Any) -> None:
        super().__init__()
        self.features = features

    def forward(self, _x: Tensor) -> Any:
        return self.features


def amortized(model: Any = model, encoder: Any = None, x: Tensor = X, **options: Any) -> Any:
    guide = AmortizedNormal(model, nn.Linear(3, 8) if encoder is None else encoder, **options)
    return guide(x)


def called_twice() -> Any:
    guide = AmortizedNormal(model, nn.Identity())
    guide(X)
    return guide(torch.zeros(4, 5))


def head(**options: Any) -> Any:
    chosen = {"in_features": 4, "out_features": 2, "scale_map": "logvar", **options}
    return guides.ScaleHead(**chosen)


class NoDefaults(scales.ScaleMap):
    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low


MAPS = (
    Case("unknown name", lambda: scales.get("softpuls"), ValueError, "'softpuls'", "Did you mean 'softplus'"),
    Case("no near name", lambda: scales.get("qqq"), ValueError, "'qqq'", "The names are logvar"),
    Case("number for a map", lambda: scales.get(3), TypeError, "scale is 3", "name of one"),  # type: ignore[arg-type]
    Case("None for a map", lambda: scales.get(None), TypeError, "None", "name of one"),  # type: ignore[arg-type]
    Case("class for a map", lambda: scales.get(scales.LogVar), TypeError, "LogVar", "call it"),  # type: ignore[arg-type]
    Case("unhashable for a map", lambda: scales.get(["logvar"]), TypeError, "['logvar']", "name of one"),  # type: ignore[arg-type]
    Case("unknown option", lambda: scales.get("softplus", low=1.0), TypeError, "low", "takes beta"),
    Case("option of none", lambda: scales.get("logvar", beta=1.0), TypeError, "beta", "takes no options"),
    Case(
        "options of a map", lambda: scales.get(scales.LogVar(), beta=1), TypeError, "beta", "give it without"
    ),
    Case("beta 0", lambda: scales.get("softplus", beta=0), ValueError, "beta is", "positive number"),
    Case("beta NaN", lambda: scales.get("softplus", beta=np.nan), ValueError, "beta is", "positive number"),
    Case("beta text", lambda: scales.get("softplus", beta="one"), TypeError, "'one'", "positive number"),
    Case(
        "beta number as text", lambda: scales.get("softplus", beta="1"), TypeError, "'1'", "positive number"
    ),
    Case(
        "beta bool", lambda: scales.get("softplus", beta=True), TypeError, "beta is True", "positive number"
    ),
    Case("low above high", lambda: scales.get("bounded", low=2, high=1), ValueError, "low is 2", "less than"),
    Case("low negative", lambda: scales.get("softclip", low=-1), ValueError, "low", "positive"),
    Case(
        "high infinite",
        lambda: scales.get("bounded", high=np.inf),
        ValueError,
        "high is inf",
        "positive number",
    ),
    Case("clamp at 0", lambda: scales.get("clamp", low=0), ValueError, "low", "positive"),
    Case("abs at NaN", lambda: scales.get("abs", low=np.nan), ValueError, "low", "positive"),
    Case("floor 0", lambda: scales.get("logvar", min_scale=0), ValueError, "min_scale", "positive"),
    Case("floor text", lambda: scales.get("logvar", min_scale="a"), TypeError, "min_scale", "number"),  # type: ignore[arg-type]
    Case("floor of a name", lambda: scales.Floor("logvar", 0.1), TypeError, "'logvar'", "scales.get"),  # type: ignore[arg-type]
    Case("raw is a number", lambda: scales.get("logvar")(1.0), TypeError, "raw", "a tensor"),  # type: ignore[arg-type]
    Case("raw is an array", lambda: scales.get("abs")(np.zeros(2)), TypeError, "raw", "a tensor"),  # type: ignore[arg-type]
    Case("raw is whole", lambda: scales.get("logvar")(torch.zeros(2).long()), TypeError, "raw", "float()"),
    Case(
        "raw is a number, for log",
        lambda: scales.get("softplus").log_scale(2),
        TypeError,
        "raw",
        "tensor",  # type: ignore[arg-type]
    ),
    Case("raw is text, for slope", lambda: scales.get("logstd").slope("a"), TypeError, "raw", "tensor"),  # type: ignore[arg-type]
    Case(
        "σ is negative", lambda: scales.get("logvar").inv(-torch.ones(1)), ValueError, "scale", "in the range"
    ),
    Case("σ is NaN", lambda: scales.get("softplus").inv(X / 0), ValueError, "scale", "in the range"),
    Case("σ above", lambda: scales.get("bounded").inv(3 + X), ValueError, "0.001 to 2", "another map"),
    Case("σ is a number", lambda: scales.get("logvar").inv(1.0), TypeError, "scale", "a tensor"),  # type: ignore[arg-type]
    Case("register an instance", lambda: scales.register("a", scales.LogVar()), TypeError, "cls", "subclass"),  # type: ignore[arg-type]
    Case("register a function", lambda: scales.register("a", torch.exp), TypeError, "cls", "subclass"),  # type: ignore[arg-type]
    Case("register a taken name", lambda: scales.register("abs", NoName), ValueError, "'abs'", "another"),
    Case("register no name", lambda: scales.register(3, NoName), TypeError, "name", "text"),  # type: ignore[arg-type]
    Case("register an empty name", lambda: scales.register("", NoName), ValueError, "name", "not empty"),
    Case("register without defaults", lambda: scales.register("a", NoDefaults), TypeError, "low", "default"),
    Case("convert a weight", lambda: scales.convert(X, "logvar", "logstd"), TypeError, "head", "nn.Linear"),  # type: ignore[arg-type]
    Case(
        "convert to no linear map",
        lambda: scales.convert(nn.Linear(2, 2), "logvar", "softplus"),
        ValueError,
        "target",
        "train the head again",
    ),
    Case(
        "convert to an unknown map",
        lambda: scales.convert(nn.Linear(2, 2), "logvar", "logsdt"),
        ValueError,
        "'logsdt'",
        "Did you mean 'logstd'",
    ),
)


class NoName(scales.ScaleMap):
    pass


ENCODER_GUIDES = (
    Case("model is no program", lambda: amortized(model="vae"), TypeError, "model is a str", "Pyro program"),
    Case("encoder is a function", lambda: amortized(encoder=torch.sin), TypeError, "encoder", "nn.Module"),
    Case("encoder is a class", lambda: amortized(encoder=nn.Linear), TypeError, "encoder", "nn.Module"),
    Case("scale unknown", lambda: amortized(scale="logvr"), ValueError, "'logvr'", "'logvar'"),
    Case("scale a number", lambda: amortized(scale=1.0), TypeError, "scale", "name of one"),
    Case("init_scale 0", lambda: amortized(init_scale=0), ValueError, "init_scale", "positive number"),
    Case("init_scale NaN", lambda: amortized(init_scale=np.nan), ValueError, "nan", "positive number"),
    Case("init_scale text", lambda: amortized(init_scale="1"), ValueError, "init_scale", "positive number"),
    Case("init_scale bool", lambda: amortized(init_scale=True), ValueError, "init_scale", "positive number"),
    Case(
        "init_scale out of reach",
        lambda: amortized(scale="bounded", init_scale=5.0),
        ValueError,
        "init_scale is 5.0",
        "between 0.001 and 2",
    ),
    Case("latent outside", lambda: amortized(model=outside), ValueError, "'z'", "autoguide"),
    Case("undeclared dims", lambda: amortized(model=undeclared), ValueError, "shape (4, ", ".to_event()"),
    Case("two plates", lambda: amortized(model=two_plates), ValueError, "outside the plate", "AutoGuideList"),
    Case("discrete latent", lambda: amortized(model=discrete), ValueError, "'k'", "poutine.block"),
    Case("no latent", lambda: amortized(model=nothing_latent), ValueError, "no latent", "at least one"),
    Case("two outputs", lambda: amortized(encoder=Returns((X, X))), TypeError, "tuple", "one floating-point"),
    Case(
        "whole features", lambda: amortized(encoder=Returns(X.long())), TypeError, "int64", "floating-point"
    ),
    Case("nothing returned", lambda: amortized(encoder=Returns(None)), TypeError, "NoneType", "(batch, H)"),
    Case("flat features", lambda: amortized(encoder=Returns(X[:, 0])), ValueError, "(4,)", "(batch, H)"),
    Case("deep features", lambda: amortized(encoder=Returns(X[None])), ValueError, "(1, 4, 3)", "flatten"),
    Case("no features", lambda: amortized(encoder=Returns(X[:, :0])), ValueError, "(4, 0)", "at least one"),
    Case("too few rows", lambda: amortized(encoder=Returns(X[:2])), ValueError, "2 rows", "one row per"),
    Case("other features later", called_twice, ValueError, "5 features", "read 3"),
    Case("posterior before a call", lambda: unasked().posterior_from({}), RuntimeError, "latents", "call"),
    Case("flow of one number", lambda: flow(one_latent), ValueError, "1", "use AmortizedNormal"),
    Case("flow without transforms", lambda: flow(transforms=0), ValueError, "transforms", "positive integer"),
    Case("flow of 1.5", lambda: flow(transforms=1.5), ValueError, "transforms", "positive integer"),
    Case("flow quantiles", lambda: flow_quantiles(), NotImplementedError, "quantiles", "Predictive"),
    Case(
        "full covariance of a function",
        lambda: AmortizedMultivariateNormal(model, torch.sin),  # type: ignore[arg-type]
        TypeError,
        "encoder",
        "nn.Module",
    ),
    Case("quantile above 1", lambda: quantiles([0.5, 1.5]), ValueError, "quantiles", "between 0 and 1"),
    Case("quantile negative", lambda: quantiles([-0.1]), ValueError, "quantiles", "between 0 and 1"),
    Case("quantile text", lambda: quantiles(["median"]), TypeError, "quantiles", "numbers between 0 and 1"),
)


def unasked() -> Any:
    return AmortizedNormal(model, nn.Linear(3, 8))


def flow(model: Any = model, **options: Any) -> Any:
    return AmortizedFlow(model, nn.Linear(3, 8), **options)(X)


def flow_quantiles() -> Any:
    return AmortizedFlow(model, nn.Linear(3, 8)).quantiles([0.5], X)


def quantiles(levels: Any) -> Any:
    return AmortizedNormal(model, nn.Linear(3, 8)).quantiles(levels, X)


EVERY_AUTO = tuple(
    Case(f"{name}: {about}", lambda c=cls, o=options: c(model, **o), error, argument, remedy)
    for name in (
        "AutoNormal",
        "AutoDiagonalNormal",
        "AutoMultivariateNormal",
        "AutoLowRankMultivariateNormal",
    )
    for cls in [getattr(guides, name)]
    for about, options, error, argument, remedy in (
        ("scale unknown", {"scale": "sofplus"}, ValueError, "'sofplus'", "'softplus'"),
        ("scale a number", {"scale": 2}, TypeError, "scale", "name of one"),
        ("init_scale negative", {"init_scale": -1.0}, ValueError, "init_scale", "positive number"),
        ("init_scale text", {"init_scale": "small"}, ValueError, "'small'", "positive number"),
    )
)
AUTO = (
    *EVERY_AUTO,
    Case(
        "auto: model is no program",
        lambda: guides.AutoNormal(3),
        TypeError,
        "model is an int",
        "Pyro program",
    ),  # type: ignore[arg-type]
    Case(
        "auto: rank 0",
        lambda: guides.AutoLowRankMultivariateNormal(model, rank=0),
        ValueError,
        "rank",
        "positive integer",
    ),
    Case(
        "auto: rank is text",
        lambda: guides.AutoLowRankMultivariateNormal(model, rank="2"),  # type: ignore[arg-type]
        ValueError,
        "rank",
        "positive integer",
    ),
)

PARTS = (
    Case("loc NaN", lambda: LogScaleNormal(X / 0, X), ValueError, "loc", "Real()"),
    Case("log_scale NaN", lambda: LogScaleNormal(X, X / 0), ValueError, "log_scale", "Real()"),
    Case("shapes", lambda: LogScaleNormal(X, torch.zeros(2)), ValueError, "log_scale", "broadcast"),
    Case("loc is text", lambda: LogScaleNormal("a", 0.0), TypeError, "loc", "tensor or a number"),  # type: ignore[arg-type]
    Case(
        "log_scale is None", lambda: LogScaleNormal(0.0, None), TypeError, "log_scale", "tensor or a number"
    ),  # type: ignore[arg-type]
    Case("head without inputs", lambda: head(in_features=0), ValueError, "in_features", "positive integer"),
    Case("head of 1.5", lambda: head(out_features=1.5), ValueError, "out_features", "positive integer"),
    Case("head of no map", lambda: head(scale_map="lgvar"), ValueError, "'lgvar'", "'logvar'"),
    Case("head at σ = -1", lambda: head(init_scale=-1), ValueError, "init_scale", "positive number"),
    Case("raw of a function", lambda: guides.raw_parameters(model), TypeError, "guide", "nn.Module"),  # type: ignore[arg-type]
)


@table(*MAPS, *ENCODER_GUIDES, *AUTO, *PARTS)
def test_wrong_input(case: Case) -> None:
    check(case)
