"""Callbacks that tell others how a fit goes, by those others' ordinary interfaces."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.svi import fit, to_tensorboard, to_wandb


def model(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: torch.Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.7))


class Writer:
    """Has the methods of a SummaryWriter and of a run that are used."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        assert global_step is not None
        self.scalars.append((tag, scalar_value, global_step))

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        for tag, value in data.items():
            self.add_scalar(tag, value, step)


@pytest.mark.parametrize("callback", [to_tensorboard, to_wandb])
def test_every_epoch_is_told_at_its_step(callback: Any) -> None:
    writer, x = Writer(), torch.randn(40)
    fitted = fit(
        model,
        guide,
        x,
        epochs=3,
        batch_size=20,
        validation=x[:10],
        progress=False,
        callbacks=[callback(writer)],
    )
    held_out = [(value, step) for tag, value, step in writer.scalars if tag == "fit/validation"]
    assert [step for _, step in held_out] == [2, 4, 6]
    assert [value for value, _ in held_out] == fitted.history["validation"].values.tolist()
    told = {tag for tag, _, _ in writer.scalars}
    assert told >= {"fit/loss", "fit/kl", "fit/reconstruction", "fit/grad_norm", "fit/nonfinite"}


def test_no_held_out_loss_is_made_up() -> None:
    writer = Writer()
    fit(model, guide, torch.randn(20), epochs=1, progress=False, callbacks=[to_tensorboard(writer, "a/")])
    tags = {tag for tag, _, _ in writer.scalars}
    assert "a/loss" in tags
    assert "a/validation" not in tags


@pytest.mark.parametrize(("callback", "name"), [(to_tensorboard, "writer"), (to_wandb, "run")])
def test_what_is_no_logger_is_refused(callback: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is a str; give"):
        callback("runs/one")
