"""Modes, buffers and copies of the modules that people bring, wherever their programs hold them."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.utils.prune
from pyro.distributions import transforms
from torch import Tensor, nn

import pyro_vae
from pyro_vae.copies import CopyError, deep_copy
from pyro_vae.guides import AmortizedNormal

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)


def batch_normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6))


def function_of(decoder: nn.Module, *, registered: bool = True) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        if registered:
            pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    return model


def fit(model: Any, guide: Any, **options: Any) -> pyro_vae.Fit:
    return pyro_vae.fit(model, guide, X, **{"epochs": 2, "progress": False, "engine": "captured", **options})


@pytest.mark.parametrize("registered", [True, False])
def test_functions_are_evaluated_in_evaluation_mode_and_nothing_moves(registered: bool) -> None:
    decoder = batch_normed()
    model = function_of(decoder, registered=registered)
    guide = AmortizedNormal(model, nn.Linear(6, 4))
    guide(X)
    before = [buffer.clone() for buffer in decoder.buffers()]
    first = pyro_vae.diagnose(model, guide, X[:4], draws=50)["elbo"]
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.buffers(), strict=True))
    assert all(part.training for part in decoder.modules())
    decoder.eval()
    torch.testing.assert_close(
        torch.as_tensor(first.to_numpy()),
        torch.as_tensor(pyro_vae.diagnose(model, guide, X[:4], draws=50)["elbo"].to_numpy()),
    )


def test_validation_of_functions_is_in_evaluation_mode() -> None:
    losses = []
    for mode in (True, False):
        torch.manual_seed(0)
        decoder = batch_normed().requires_grad_(False)
        model = function_of(decoder)
        guide = AmortizedNormal(model, nn.Linear(6, 4))
        decoder[1].momentum = decoder[3].p = 0.0  # so that training is the same in both modes ...
        decoder[1].train(mode)
        losses.append(float(fit(model, guide, lr=1e-12, epochs=1, validation=X[:5]).history["validation"][0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # ... and validation must be


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_frozen_and_in_evaluation_mode_stays_so(whole: bool) -> None:
    decoder = batch_normed()
    decoder(torch.randn(64, 2))
    frozen = decoder if whole else decoder[1]
    frozen.requires_grad_(False).eval()
    before = [buffer.clone() for buffer in decoder.buffers()]
    model = pyro_vae.models.VAE(decoder, 2, "normal")
    seen: list[bool] = []
    decoder[3].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    fit(model, AmortizedNormal(model, nn.Linear(6, 4)), engine="eager")
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.buffers(), strict=True))
    assert any(seen) is not whole  # the dropout of what is not frozen drops


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_parameters_that_a_user_has_frozen_stay_as_they_are(engine: str) -> None:
    """Also those that a PyroModule holds itself, which Pyro unfreezes when they are first read."""
    model = pyro_vae.models.VAE(nn.Linear(2, 6), 2, "normal").requires_grad_(False)
    guide = AmortizedNormal(model, nn.Linear(6, 4))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert "observation.dispersion" in before
    fit(model, guide, engine=engine)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad, name


def weight_normed(layer: nn.Linear) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


NORMS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight_norm": weight_normed,
    "spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5),
    "parametrized": nn.utils.parametrizations.weight_norm,
    "parametrized spectral": nn.utils.parametrizations.spectral_norm,
    "compiled": lambda layer: torch.compile(layer, backend="eager"),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_modules_with_computed_weights_are_fitted_and_diagnosed(norm: Callable[..., nn.Module]) -> None:
    decoder = nn.Sequential(norm(nn.Linear(2, 8)), nn.ReLU(), nn.Linear(8, 6))
    decoder(torch.ones(1, 2))  # what was computed has a graph
    model = pyro_vae.models.VAE(decoder, 2, "normal")
    guide = AmortizedNormal(model, nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU()))
    fit(model, guide)
    report = pyro_vae.diagnose(model, guide, X[:4], draws=400)
    with torch.no_grad(), pyro.validation_enabled(False):
        z = guide.eval().posterior(X[:4]).sample((2000,))
        q, p = guide.posterior(X[:4]), model.eval().decode(z)
        weight = p.log_prob(X[:4]) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
    error = 6 * float(weight.std(0).max()) * (400**-0.5 + 2000**-0.5)
    torch.testing.assert_close(
        torch.as_tensor(report["elbo"].to_numpy()).float(), weight.mean(0), atol=error, rtol=0
    )


def test_a_transform_that_remembers_is_copied() -> None:
    class Flow(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = transforms.affine_coupling(2, hidden_dims=[8])
            self.linear = nn.Linear(2, 6)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
                z = pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))
                pyro.sample("x", dist.Normal(self.linear(z), 1.0).to_event(1), obs=x)

    model = Flow()
    guide = AmortizedNormal(model, nn.Linear(6, 4))
    fit(model, guide)
    assert pyro_vae.diagnose(model, guide, X[:4], draws=50)["elbo"].notnull().all()


def test_what_cannot_be_copied_is_named() -> None:
    model = pyro_vae.models.VAE(nn.Linear(2, 6), 2, "normal")
    model.stream = (item for item in range(3))
    with pytest.raises(CopyError, match=r"VAE cannot be copied .*generator.*outside of the module"):
        deep_copy(model)
