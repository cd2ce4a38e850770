"""A fit, and everything after it, on a pretended CUDA device: nothing mixes tensors of two devices.

CUDA is not run here. What the pretended device can show and what it cannot is told in
:mod:`tests.pretend_device`; on a machine with a GPU ``tests/gpu`` runs the real one.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae
from pyro_vae import guides, models
from pyro_vae.batches.batches import as_batches
from pyro_vae.models import likelihoods
from pyro_vae.study import StudyConfig, run_study
from pyro_vae.svi import ELBO, IWAE, STL, Fit, NonFiniteError, Renyi, fit
from tests import seeds
from tests.pretend_device import CUDA, OnDevice, RecordsOnDevice, pretend_cuda
from tests.svi.pairs import PAIRS, observations

D, Z = 4, 2


@pytest.fixture(autouse=True)
def _pretend() -> Iterator[None]:
    with pretend_cuda():
        yield


def rows(n: int = 6) -> Tensor:
    return torch.randn(n, D, generator=seeds.generator(1), device="cpu")


def vae(likelihood: Any = "normal", outputs: int = D, **options: Any) -> models.VAE:
    return models.VAE(nn.Linear(Z, outputs), Z, likelihood, **options)


def amortized(model: Any, **options: Any) -> guides.AmortizedNormal:
    return guides.AmortizedNormal(model, nn.Linear(D, 5), **options)


def fitted(model: Any, guide: Any, data: Any, **options: Any) -> Fit:
    """Two steps, on the device and nowhere else."""
    options = {"steps": 2, "engine": "eager", "device": "cuda", "progress": False} | options
    result = fit(model, guide, data, **options)
    for module in (model, guide):
        if isinstance(module, nn.Module):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                assert tensor.is_cuda, name
    return result


# What is pretended


def test_the_device_refuses_what_cuda_refuses() -> None:
    here, there = torch.ones(2, 3), torch.ones(2, 3, device="cuda")
    assert there.device == CUDA
    for mixes in (
        lambda: there + here,
        lambda: here + there.sum(),
        lambda: there @ here.T,
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: here[there[:, 0] > 0],
        lambda: here.add_(there),
        lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match=r"device|CPU"):
            mixes()
    for reads in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match=r"Tensor.cpu\(\)"):
            reads()


def test_the_device_takes_what_cuda_takes() -> None:
    there = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    assert (there * torch.tensor(2.0)).tolist() == [2.0, 4.0, 6.0]
    assert there[torch.tensor([2, 0])].tolist() == [3.0, 1.0]
    assert torch.zeros(3).copy_(there).tolist() == [1.0, 2.0, 3.0]
    leaf = torch.ones(3, device="cuda", requires_grad=True)
    (leaf * there).sum().backward()
    assert isinstance(leaf.grad, OnDevice)
    assert leaf.grad.cpu().numpy().tolist() == [1.0, 2.0, 3.0]


def test_the_device_has_a_stream_of_its_own() -> None:
    torch.manual_seed(0)
    first, here = torch.randn(2, device="cuda").tolist(), torch.randn(2).tolist()
    torch.manual_seed(0)
    assert torch.randn(2).tolist() == here
    assert torch.randn(2, device="cuda").tolist() == first


# Fitting


def ten_lines() -> tuple[Callable[[Tensor], None], guides.AmortizedNormal]:
    """As in the README: a plain function, a module that only it knows, and a constant."""
    decoder = nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return model, amortized(model)


def test_the_ten_lines_of_the_readme_follow_to_the_device() -> None:
    model, guide = ten_lines()
    result = fitted(model, guide, rows(), device="auto")
    assert result.device == "cuda"
    pyro_vae.diagnose(result.model, result.guide, rows(3), draws=30)
    pyro_vae.from_pyro_svi(result.model, result.guide, rows(3), draws=30)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("captured", [False, True])
def test_refinement_stays_on_the_device(
    covariance: str, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if captured:
        monkeypatch.setattr("pyro_vae.guides.refining.density.PATIENCE", 0)
    model, guide = ten_lines()
    result = fitted(model, guide, rows())
    x = rows(5).to(CUDA)
    assert result.refined(covariance=covariance).posterior(x).mean.is_cuda
    refined = pyro_vae.refine(result.model, result.guide, rows(5), covariance=covariance, dispersed=2)
    assert refined.loc.is_cuda
    assert refined.elbo.is_cuda
    assert (refined.elbo >= refined.elbo_before).all()
    pyro_vae.diagnose(result.model, refined, rows(5), draws=30)
    pyro_vae.diagnose(result.model, result.guide, rows(5), draws=30, refined=True)


def test_auto_stays_on_the_cpu_where_a_pair_cannot_follow(caplog: pytest.LogCaptureFixture) -> None:
    """Its prior is an attribute, which no one can find."""
    pair = PAIRS["normal"]()
    with caplog.at_level(logging.WARNING):
        result = fit(pair.model, pair.guide, observations(), steps=2, engine="eager", progress=False)
    assert result.device == "cpu"
    assert "runs on the CPU, since its model and guide mix devices" in caplog.text
    pair = PAIRS["normal"]()
    with pytest.raises(ValueError, match="make them on the device of the data"):
        fit(pair.model, pair.guide, observations(), steps=2, device="cuda", progress=False)


@pytest.mark.parametrize("name", ["functions", "tutorial", "drawn bottom-up", "masked, no closed KL"])
def test_what_programs_make_on_the_way_follows(name: str) -> None:
    pair = PAIRS[name]()
    result = fit(pair.model, pair.guide, observations(), steps=2, engine="eager", progress=False)
    assert result.device == "cuda"


@pytest.mark.parametrize("name", likelihoods.names())
def test_likelihoods(name: str) -> None:
    arguments = {"binomial": {"total_count": 4}, "categorical": {"categories": 3}}.get(name, {})
    likelihood = likelihoods.get(name, **arguments)
    of_name = {"normal": rows(), "student-t": rows(), "continuous-bernoulli": torch.sigmoid(rows())}
    x = of_name.get(name, (rows() > 0).double())
    model = vae(likelihood, D * likelihood.outputs)
    guide = amortized(model)
    fitted(model, guide, x, validation=x)
    if name != "categorical":
        assert models.reconstruct(model, guide, x).shape == x.shape
    assert models.traverse(model, torch.zeros(Z), steps=3).is_cuda or name == "categorical"
    assert model.sample(2).is_cuda


@pytest.mark.parametrize("name", ["mixture", "vamp", "laplace", "full covariance"])
def test_priors(name: str) -> None:
    prior: Any = {
        "mixture": lambda: models.MixturePrior(Z, 3),
        "vamp": lambda: models.VampPrior(Z, rows(3)),
        "laplace": lambda: dist.Laplace(0.0, 1.0).expand([Z]).to_event(1),
        "full covariance": lambda: dist.MultivariateNormal(torch.zeros(Z), torch.eye(Z)),
    }[name]()
    model = vae(prior=prior)
    guide = amortized(model)
    if name == "vamp":
        prior.posterior = guide.posterior
    fitted(model, guide, rows())
    pyro_vae.diagnose(model, guide, rows(3), draws=30)


OBJECTIVES = {
    "ELBO": ELBO(),
    "sampled KL": ELBO(analytic_kl=False),
    "warm-up": ELBO(kl_weight=lambda step: step / 3),
    "IWAE": IWAE(2),
    "Renyi": Renyi(0.5, 2),
    "STL": STL(),
}
ENCODERS: dict[str, Callable[[Any], Any]] = {
    "normal": amortized,
    "full covariance": lambda model: guides.AmortizedMultivariateNormal(model, nn.Linear(D, 5)),
    "flow": lambda model: guides.AmortizedFlow(model, nn.Linear(D, 5)),
}


@pytest.mark.parametrize("guide", ENCODERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(objective: str, guide: str) -> None:
    model = vae()
    fitted(model, ENCODERS[guide](model), rows(), objective=OBJECTIVES[objective])


@pytest.mark.parametrize(
    "make",
    [
        guides.AutoNormal,
        guides.AutoLowRankMultivariateNormal,
        autoguide.AutoDelta,
        autoguide.AutoIAFNormal,
        autoguide.AutoMultivariateNormal,
    ],
    ids=lambda make: f"{make.__module__.split('.')[0]}.{make.__name__}",
)
def test_autoguides(make: Callable[[Any], Any]) -> None:
    model = vae()
    fitted(model, make(model), rows())


@pytest.mark.parametrize("name", pyro_vae.scales.names())
def test_scale_maps(name: str) -> None:
    arguments = {"low": 1e-3} if name in ("clamp", "abs") else {}
    arguments |= {"low": 1e-3, "high": 5.0} if name in ("bounded", "softclip") else {}
    model = vae()
    guide = amortized(model, scale=pyro_vae.scales.get(name, **arguments))
    fitted(model, guide, rows(), lr_multiplier="matched")


def test_a_captured_step_is_on_the_device_and_equals_eager() -> None:
    losses = []
    for engine in ("eager", "captured", "auto"):
        torch.manual_seed(0)
        model = vae()
        with RecordsOnDevice.in_place_of_cuda_graphs():
            result = fitted(
                model,
                amortized(model),
                rows(10),
                engine=engine,
                batch_size=4,
                steps=4,
                validation=rows(),
                max_norm=1.0,
            )
        assert result.engine == ("cuda-graph" if engine == "auto" else engine)
        losses.append(result.history["loss"].values)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] == pytest.approx(losses[0], rel=1e-9)


def test_more_models() -> None:
    deep = models.HierarchicalVAE(nn.Linear(Z, D), nn.Linear(1, 2 * Z), (Z, 1), "normal")
    fitted(deep, amortized(deep), rows())
    images = models.VAE(models.ConvDecoder(Z, [4], (1, 8, 8)), Z, "bernoulli")
    encoder = guides.AmortizedNormal(images, models.ConvEncoder((1, 8, 8), [4], 5))
    fitted(images, encoder, (torch.rand(6, 1, 8, 8) > 0.5).double())
    ppca = models.PPCA.fit_exact(rows(20), Z)
    fitted(ppca, amortized(ppca), rows())
    assert ppca.posterior(rows().to(CUDA)).mean.is_cuda
    assert ppca.log_evidence(rows().to(CUDA)).is_cuda


def test_early_stopping_checkpoints_and_saved_fits(tmp_path: Path) -> None:
    def run(**options: Any) -> tuple[Fit, Any, Any]:
        torch.manual_seed(0)
        model = vae()
        guide = amortized(model)
        options = {"validation": rows(3), "patience": 5, "batch_size": 4} | options
        return fitted(model, guide, rows(), **options), model, guide

    whole, *_ = run(steps=6)
    run(steps=2, checkpoint=tmp_path / "state")
    result, *_ = run(steps=6, checkpoint=tmp_path / "state")
    assert result.history["loss"].values.tolist() == whole.history["loss"].values.tolist()
    result.save(tmp_path / "fit")
    for device in ("cpu", "cuda"):
        model = vae().to(device)
        guide = amortized(model).to(device)
        guide(rows().to(device))
        Fit.load(tmp_path / "fit", model, guide)
        for mine, theirs in zip(guide.parameters(), whole.guide.parameters(), strict=True):
            assert torch.equal(mine.cpu(), theirs.cpu())


def test_a_fit_that_breaks_says_where() -> None:
    model = vae()
    guide = amortized(model)
    with pytest.raises(NonFiniteError, match="site 'z'"):
        fitted(model, guide, rows(), lr=1e300, steps=9)


def test_every_kind_of_data(tmp_path: Path) -> None:
    model = vae()
    guide = amortized(model)
    np.save(tmp_path / "x.npy", rows().numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    loader = DataLoader(TensorDataset(rows()), batch_size=3, shuffle=True)
    for data in (rows().to(CUDA), rows().numpy(), mapped, loader):
        fitted(model, guide, data)
    for x in (rows().to(CUDA), mapped):
        pyro_vae.diagnose(model, guide, x, draws=30)


def test_the_users_streams_do_not_move() -> None:
    model = vae()
    guide = amortized(model)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    fitted(model, guide, rows(), validation=rows())
    pyro_vae.diagnose(model, guide, rows(3), draws=30)
    after = torch.get_rng_state(), torch.cuda.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_loader_leaves_the_noise_of_the_device_alone() -> None:
    torch.manual_seed(5)
    before = torch.cuda.get_rng_state()
    batches = as_batches(TensorDataset(rows()), batch_size=3, seed=0, device=CUDA, dtype=torch.float64)
    list(batches.epoch(0))
    assert torch.equal(torch.cuda.get_rng_state(), before)


# What to believe of it


@pytest.mark.parametrize("guide", ENCODERS)
def test_diagnostics(guide: str) -> None:
    model = vae()
    q = ENCODERS[guide](model)
    x = rows(3)
    fitted(model, q, x)
    pyro_vae.log_weights(model, q, x, draws=30)
    pyro_vae.active_units(model, q, x, draws=5)
    pyro_vae.calibrate(model, q, n=4, draws=39)
    pyro_vae.repair(model, q, x[:2], draws=50)
    if guide == "normal":
        tree = pyro_vae.from_pyro_svi(model, q, x, draws=30)
        pyro_vae.inference_gaps(model, q, x[:2], draws=30, steps=20, particles=2)
        assert np.isfinite(tree.posterior["z"].values).all()


def test_references() -> None:
    model = models.PPCA.fit_exact(rows(20), Z).to(CUDA)
    exact = pyro_vae.reference_posterior(model, rows(2), draws=20)
    assert np.isfinite(exact.posterior["z"].values).all()
    with pytest.raises(ValueError, match="NUTS has not converged"):  # so it ran
        pyro_vae.reference_posterior(model, rows(2), method="nuts", draws=10, warmup=5, chains=2)


# Where the user has set a default device


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_another_default_device_is_harmless(device: str) -> None:
    other = "cpu" if device == "cuda" else "cuda"
    with torch.device(device):
        model = vae()
        guide = amortized(model)
        x = rows(4).to(device)
    with torch.device(other):
        for data in (x, TensorDataset(x.cpu())):
            assert (
                fit(model, guide, data, device=device, engine="eager", steps=2, progress=False).device
                == device
            )
        pyro_vae.diagnose(model, guide, x, draws=30)
        pyro_vae.calibrate(model, guide, n=4, draws=39)
        pyro_vae.repair(model, guide, x[:2], draws=50)
        models.reconstruct(model, guide, x)


# The main job


@pytest.mark.slow
@pytest.mark.arviz
def test_a_study(tmp_path: Path) -> None:
    """With ``device="auto"``, its default."""
    torch.set_default_dtype(torch.float32)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).poisson(2.0, (60, 6)).astype(np.float32))
    config = StudyConfig(
        data=str(tmp_path / "x.npy"),
        likelihood="poisson",
        scales=("logvar", "softplus"),
        seeds=2,
        epochs=1,
        hidden=(8,),
        latent_dim=2,
        draws=100,
        gap_observations=2,
    )
    with RecordsOnDevice.in_place_of_cuda_graphs():
        study = run_study(config, out=tmp_path / "run", progress=False)
    assert json.loads((study.folder / "run.json").read_text())["device"] == "cuda"
