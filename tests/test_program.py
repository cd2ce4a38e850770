"""A study of the user's own program, and of several families: to its end, and again from its folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pyro_vae.report import pictures
from pyro_vae.study import Study, StudyConfig, completion, measures, refined_again, resume_study, run_study

PROGRAM = """
import pyro, pyro.distributions as dist, torch
from torch import nn
import pyro_vae

def make_pair(scale, x):
    sigma = pyro_vae.scales.get(scale)
    decoder, encoder = nn.Linear(2, x.shape[1]), nn.Linear(x.shape[1], 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            strength = pyro.sample("strength", dist.Gamma(2.0, 2.0))
            pyro.sample("x", dist.Normal(decoder(z) * strength[:, None], 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, raw = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, sigma(raw)).to_event(1))
            pyro.sample("strength", dist.LogNormal(0.0 * loc[:, 0], 0.5))

    return model, guide
"""

SMALL = {"seeds": 1, "epochs": 2, "draws": 100, "gap_observations": 2, "device": "cpu"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and a program, for few simulations and coarse figures: none asks for better."""
    import torch

    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(measures, "SIMULATIONS", 40)
    monkeypatch.setattr(pictures, "DPI", 30)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_program.py").write_text(PROGRAM)
    np.save("x.npy", np.random.default_rng(0).normal(3, 1, (40, 3)).astype("f4"))
    return tmp_path


def test_a_program_is_studied_to_the_end(here: Path) -> None:
    config = StudyConfig("x.npy", ("logvar", "softplus"), program="my_program.py:make_pair", **SMALL)  # type: ignore[arg-type]
    study = run_study(config, out="run", progress=False)
    assert study.findings.guides == ["logvar", "softplus"]
    assert study.findings.latents.sizes["latent"] == 3  # z and strength
    posterior = study.posteriors["logvar"]
    assert {"z", "strength"} == set(posterior["posterior"].data_vars)
    # the model sees the data as they are, not in units of their standard deviations
    assert float(posterior["observed_data"]["x"].mean()) > 2
    assert posterior["prior_predictive"]["x"].shape == (1, 8, 3)
    assert "of my_program.py:make_pair" in (here / "run" / "report.html").read_text()
    assert study.config.command("again") == (
        "pyro-vae compare my_program.py:make_pair --data x.npy --scale logvar --scale softplus --seeds 1 "
        "--epochs 2 --draws 100 --gap-observations 2 --device cpu --out again"
    )
    again = Study.load("run")
    assert again.config == config
    assert again.answer == study.answer
    record = json.loads((here / "run" / "run.json").read_text())["result"]
    assert list(record).index("verdict") < list(record).index("answer")
    tree = xr.open_datatree(refined_again(again, "refined.nc"), engine="h5netcdf")
    draws = tree["posterior"]["strength"]
    assert draws.shape == (1, 500, 8)
    assert float(draws.min()) > 0
    assert set(tree["sample_stats"].data_vars) == {"log_p", "log_q"}
    with pytest.raises(ValueError, match=r"refined is refined\.nc, which is there already; name another"):
        refined_again(again, "refined.nc")


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_program_that_was_changed_does_not_go_on_with_the_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StudyConfig("x.npy", ("logvar",), program="my_program.py:make_pair", **SMALL)  # type: ignore[arg-type]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patched.setattr(completion, "examine", stop)
        run_study(config, out="run", progress=False)
    (here / "my_program.py").write_text(PROGRAM.replace("1.0).to_event(1), obs", "2.0).to_event(1), obs"))
    with pytest.raises(
        ValueError, match=r"program my_program\.py:make_pair is not the one that the run in run"
    ):
        resume_study("run", progress=False)
    with pytest.raises(ValueError, match="the output folder run holds another run"):
        run_study(config, out="run", progress=False)


def test_a_program_that_no_study_can_judge_is_refused_before_the_first_fit(here: Path) -> None:
    shared = PROGRAM.replace(
        "strength = pyro",
        'shared = pyro.sample("shared", dist.Normal(0.0, 1.0))\n            strength = pyro',
    )
    (here / "my_program.py").write_text(shared)
    config = StudyConfig("x.npy", ("logvar",), program="my_program.py:make_pair", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shared"):
        run_study(config, out="run", progress=False)
    assert not (here / "run").exists()


def test_families_are_compared_under_their_names(here: Path) -> None:
    config = StudyConfig(
        "x.npy",
        ("softplus",),
        guides=("normal", "multivariate", "flow"),
        objective="iwae",
        latent_dim=2,
        hidden=(8,),
        **SMALL,  # type: ignore[arg-type]
    )
    study = run_study(config, out="run", progress=False)
    assert study.findings.guides == ["normal", "multivariate", "flow"]
    assert np.isfinite(study.findings.latents["scale"]).all()
    assert sorted(path.name for path in (here / "run" / "fits").iterdir()) == [
        "flow-0",
        "multivariate-0",
        "normal-0",
    ]
    assert Study.load("run").config.objective == "iwae"


def test_several_families_and_maps_have_both_in_their_names() -> None:
    arms = StudyConfig(scales=("logvar", "softplus"), guides=("normal", "flow")).arms
    assert list(arms) == ["normal-logvar", "normal-softplus", "flow-logvar", "flow-softplus"]


@pytest.mark.parametrize(("objective", "particles"), [("elbo", 1), ("iwae", 5), ("renyi", 5), ("stl", 1)])
def test_objectives_have_the_draws_that_the_help_tells(objective: str, particles: int) -> None:
    from pyro_vae.study.fits import _objective

    made = _objective(StudyConfig(objective=objective))
    assert made.num_particles == particles  # type: ignore[attr-defined]
    assert _objective(StudyConfig(objective=objective, particles=3)).num_particles == 3  # type: ignore[attr-defined]


def test_a_masked_latent_is_refused_before_the_first_fit(here: Path) -> None:
    masked = PROGRAM.replace("dist.Gamma(2.0, 2.0)", "dist.Gamma(2.0, 2.0).mask(x[:, 0] > 3)")
    (here / "my_program.py").write_text(masked.replace("0.5))", "0.5).mask(x[:, 0] > 3))"))
    config = StudyConfig("x.npy", ("logvar",), program="my_program.py:make_pair", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latent 'strength' is masked"):
        run_study(config, out="run", progress=False)
    assert not (here / "run").exists()


SHARED = """
import pyro, pyro.distributions as dist, torch
from torch import nn
import pyro_vae

def make_pair(scale, x):
    rows, encoder, sigma = len(x), nn.Linear(3, 2), pyro_vae.scales.get(scale)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
        with pyro.plate("data", rows, subsample=x) as batch:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + z[:, None], 0.5).to_event(1), obs=batch)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.sample("loc", dist.Normal(pyro.param("at", torch.full((3,), 3.0)), 1e-3).to_event(1))
        with pyro.plate("data", rows, subsample=x) as batch:
            mean, raw = encoder(batch).unbind(-1)
            pyro.sample("z", dist.Normal(mean, sigma(raw)))

    return model, guide
"""


def test_latents_that_all_observations_share_are_given_by_draws_of_the_guide(here: Path) -> None:
    import torch

    (here / "shared.py").write_text(SHARED)
    config = StudyConfig("x.npy", ("logvar",), program="shared.py:make_pair", **SMALL)  # type: ignore[arg-type]
    study = run_study(config, out="run", progress=False)
    assert study.findings.latents.sizes["latent"] == 1  # z alone is of one observation
    tree = study.posteriors["logvar"]
    assert list(tree["posterior"].data_vars) == ["z"]
    shared = tree["shared"]["loc"]
    assert shared.shape == (1, 500, 3)
    # a closed form: x given loc is Normal with covariance 1 + I/4; the guide's loc hardly varies
    covariance = torch.ones(3, 3, dtype=torch.float64) + 0.25 * torch.eye(3, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(
        torch.from_numpy(shared.values.mean((0, 1))).double(), covariance
    )
    refined = study.findings.refined
    assert refined is not None
    assert refined.attrs["shared_draws"] == 5
    held_out = torch.from_numpy(tree["observed_data"]["x"].values).double()
    found, error = (
        refined[name].values[0, 0, : len(held_out)] for name in ("log_evidence", "log_evidence_se")
    )
    assert error.max() < 0.15
    # five errors of the weights, and what loc's 1e-3 is worth at a slope of a few nats
    assert (np.abs(found - exact.log_prob(held_out).numpy()) < 5 * error + 0.02).all()
    assert "given 5 draws of the latents that all observations share" in " ".join(study.verdict.sentences)
    assert "shared latents" in (here / "run" / "report.html").read_text()
    assert Study.load("run").answer == study.answer


def test_a_program_without_latents_of_single_observations_is_refused_with_what_serves_it(here: Path) -> None:
    alone = SHARED.replace('z = pyro.sample("z", dist.Normal(0.0, 1.0))', "z = torch.zeros(len(batch))")
    alone = alone.replace('            pyro.sample("z", dist.Normal(mean, sigma(raw)))\n', "")
    (here / "shared.py").write_text(alone)
    config = StudyConfig("x.npy", ("logvar",), program="shared.py:make_pair", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"every latent of the model \(loc\) is shared.*pyro_vae\.diagnose"):
        run_study(config, out="run", progress=False)
    assert not (here / "run").exists()
