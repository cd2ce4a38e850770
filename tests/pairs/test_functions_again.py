"""The parameters of plain functions: saved, loaded into fresh modules, fitted further, never lost."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.svi import Checkpoint

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Pair = tuple[Callable[..., Any], Callable[..., Any]]


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)


def fit(model: Any, guide: Any, **options: Any) -> pyro_vae.Fit:
    options = {"epochs": 20, "lr": 0.05, "batch_size": 32, "progress": False, "engine": "captured"} | options
    return pyro_vae.fit(model, guide, X, **options)


def of_modules(seed: int, *, width: int = 6, name: str = "decoder") -> Pair:
    """A decoder with running statistics and a frozen part, by pyro.module; a lambda around a module."""
    torch.manual_seed(seed)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, width), nn.Linear(width, 6))
    decoder[3].requires_grad_(False)

    def model(x: Tensor) -> None:
        pyro.module(name, decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    guide = AmortizedNormal(model, nn.Linear(6, 8))
    return lambda x: model(x), lambda x: guide(x)


def of_statements() -> Pair:
    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.zeros(2, 6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", lambda: 0.1 * torch.ones(6, 2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ a, scale).to_event(1))

    return model, guide


def elbo(fitted: pyro_vae.Fit) -> float:
    return float(pyro_vae.diagnose(fitted.model, fitted.guide, X[:8], draws=50)["elbo"].mean())


@pytest.mark.parametrize("make", [of_modules, lambda _seed: of_statements()], ids=["modules", "statements"])
def test_a_saved_fit_is_itself_again_in_fresh_functions(make: Callable[[int], Pair], tmp_path: Path) -> None:
    fitted = fit(*make(0), epochs=4)
    fitted.save(tmp_path / "fit")
    again = pyro_vae.Fit.load(tmp_path / "fit", *make(1))
    again.save(tmp_path / "unused")  # before any call
    assert elbo(again) == pytest.approx(elbo(fitted), abs=1e-3)
    once_more = pyro_vae.Fit.load(tmp_path / "unused", *make(2))
    assert elbo(once_more) == pytest.approx(elbo(fitted), abs=1e-3)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"width": 5}, r"'decoder\$\$\$2.weight' of shape"),
        ({"name": "dec"}, r"no parameter 'dec\$\$\$0.weight'"),
    ],
)
def test_another_pair_is_refused(other: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    fit(*of_modules(0), epochs=1).save(tmp_path / "fit")
    again = pyro_vae.Fit.load(tmp_path / "fit", *of_modules(1, **other))
    with pytest.raises(ValueError, match=sentence):
        again.model(X)


def test_a_module_is_not_loaded_into_a_function(tmp_path: Path) -> None:
    model = pyro_vae.models.VAE(nn.Linear(2, 6), 2, "normal")
    fit(model, AmortizedNormal(model, nn.Linear(6, 4)), epochs=1).save(tmp_path / "fit")
    with pytest.raises(ValueError, match="this model is a function; give the module"):
        pyro_vae.Fit.load(tmp_path / "fit", *of_statements())


@pytest.mark.parametrize("make", [lambda: of_modules(0), of_statements], ids=["modules", "statements"])
def test_a_fit_goes_on(make: Callable[[], Pair], tmp_path: Path) -> None:
    first = fit(*make())
    reached, before = float(first.history["loss"][-4:].mean()), elbo(first)
    first.save(tmp_path / "fit")
    loaded = pyro_vae.Fit.load(tmp_path / "fit", *make())
    for earlier in (loaded, first):
        on = fit(earlier.model, earlier.guide, epochs=1, lr=1e-9)
        spread = float(first.history["loss"][-8:].std())
        assert abs(float(on.history["loss"].mean()) - reached) < max(1.0, 6 * spread)
    if make is of_statements:
        fit(first.model, first.guide, epochs=5)
        assert elbo(first) == pytest.approx(before, abs=1e-6)  # the first fit keeps its own values


def test_the_block_of_a_fit_is_where_another_starts() -> None:
    def weights(fitted: pyro_vae.Fit) -> Tensor:
        with fitted.parameters():
            return torch.cat([pyro.param(name).detach().flatten() for name in ("w", "a", "scale")])

    model, guide = of_statements()
    first = fit(model, guide)
    with first.parameters():
        inside = fit(model, guide, epochs=1, lr=1e-9)
    outside = fit(model, guide, epochs=1, lr=1e-9)
    torch.testing.assert_close(weights(inside), weights(first), rtol=0, atol=1e-6)
    started = torch.cat([torch.zeros(12), torch.full((12,), 0.1), torch.ones(2)])
    torch.testing.assert_close(weights(outside), started, rtol=0, atol=1e-6)
    assert float((weights(first) - started).abs().max()) > 0.01


def test_a_function_without_the_parameters_of_its_fit_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, guide = of_statements()
    fitted = fit(model, guide, epochs=2)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        with fitted.parameters():
            Predictive(model, guide=guide, num_samples=2)(X)
        Predictive(model, guide=fitted.guide, num_samples=2)  # is not called
        fit(model, guide, epochs=1)
        assert not caplog.messages
        Predictive(model, guide=guide, num_samples=2)(X)
    assert any("pyro.param('a') of guide starts from its initial value" in m for m in caplog.messages)
    assert all("with fit.parameters():" in m for m in caplog.messages)
    pyro.clear_param_store()


class StoppedError(Exception):
    """Where a fit is interrupted."""


def running_statistics(seed: int) -> tuple[Pair, nn.BatchNorm1d]:
    """A decoder that only its closure and pyro.module know."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(8)
    decoder = nn.Sequential(nn.Linear(2, 8), norm, nn.Linear(8, 6))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.zeros(6, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ a, 1.0).to_event(1))

    return (model, guide), norm


def test_a_checkpoint_has_the_running_statistics_of_modules_in_functions(tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise StoppedError

    pair, whole = running_statistics(0)
    expected = fit(*pair, epochs=5)
    with pytest.raises(StoppedError):
        fit(
            *running_statistics(0)[0],
            epochs=5,
            checkpoint=Checkpoint(tmp_path / "state", 0),
            callbacks=[stop],
        )
    pair, resumed = running_statistics(1)  # in another process, with other starting values
    again = fit(*pair, epochs=5, checkpoint=tmp_path / "state")
    assert torch.equal(resumed.running_mean, whole.running_mean)
    assert torch.equal(resumed.running_var, whole.running_var)
    assert (again.history["loss"] == expected.history["loss"]).all()


def test_early_stopping_takes_back_the_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr("pyro_vae.svi.loop.Loop.loss_on", lambda *_: next(losses))
    pair, norm = running_statistics(0)
    seen = []
    fit(
        *pair,
        epochs=4,
        validation=X,
        patience=2,
        callbacks=[lambda _: seen.append(norm.running_mean.clone())],
    )
    assert torch.equal(norm.running_mean, seen[1])


def of_a_frozen_encoder(seed: int, *, features: int = 6) -> Pair:
    """A decoder and an encoder's head that are trained, and a body that is not but for its statistics."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.BatchNorm1d(features), nn.Identity()).requires_grad_(False)
    decoder, head = nn.Linear(2, 6), nn.Linear(features, 4)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("body", body)
        pyro.module("head", head)
        loc, raw = head(body(x[:, :features])).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return model, guide


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_statistics_of_a_module_that_nobody_trains_are_saved_too(tmp_path: Path) -> None:
    fitted = fit(*of_a_frozen_encoder(0))
    fitted.save(tmp_path / "fit")
    again = pyro_vae.Fit.load(tmp_path / "fit", *of_a_frozen_encoder(1))
    assert elbo(again) == pytest.approx(elbo(fitted), abs=1e-3)
    with pytest.raises(ValueError, match=r"'body\.0\.running_mean' of shape \(6,\), and this pair of \(5,\)"):
        pyro_vae.Fit.load(tmp_path / "fit", *of_a_frozen_encoder(1, features=5))
    with pytest.raises(ValueError, match=r"'body\.0\.num_batches_tracked' of a module that is not trained"):
        pyro_vae.Fit.load(tmp_path / "fit", *of_statements())
