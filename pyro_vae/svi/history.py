"""Write down the loss of every step, and a line per epoch."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch

from pyro_vae.naming import OF_FITS, named

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the data; what callbacks receive. Losses in nats per observation."""

    epoch: int
    step: int
    """Steps taken when the epoch ended."""
    loss: float
    kl: float
    reconstruction: float
    grad_norm: float
    """Mean over the epoch's finite steps of the norm of the whole gradient, of totals as Pyro differentiates
    them."""
    nonfinite: int
    """Steps that were skipped because the loss or the gradient was not finite."""
    validation: float = math.nan


@dataclass
class Recorder:
    """Collects the terms of steps."""

    step_losses: list[float] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    _terms: list[Sequence[float]] = field(default_factory=list)
    _weights: list[int] = field(default_factory=list)

    def step(self, terms: Sequence[float], observations: int) -> None:
        """Note a step: its loss, KL, reconstruction and gradient norm; ``observations`` is what the totals
        are about."""
        self._terms.append(terms)
        self._weights.append(observations)

    def close_epoch(self, step: int, nonfinite: int, validation: float = math.nan) -> EpochRecord:
        """Average the epoch over its finite steps, each weighted by its observations."""
        terms = torch.tensor(self._terms, dtype=torch.float64, device="cpu")
        weights = torch.tensor(self._weights, dtype=torch.float64, device="cpu")
        self.step_losses += (terms[:, 0] / weights).tolist()
        finite = torch.isfinite(terms[:, [0, 3]]).all(-1)  # not every objective knows its KL
        mean = terms[finite].sum(0) / weights[finite].sum()
        record = EpochRecord(
            epoch=len(self.epochs),
            step=step,
            loss=float(mean[0]),
            kl=float(mean[1]),
            reconstruction=float(mean[2]),
            grad_norm=float(terms[finite, 3].mean()),
            nonfinite=nonfinite,
            validation=validation,
        )
        self.epochs.append(record)
        self._terms, self._weights = [], []
        return record

    def state(self) -> dict[str, Any]:
        """Everything noted so far, as plain values and tensors."""
        return {
            "step_losses": torch.tensor(self.step_losses, dtype=torch.float64, device="cpu"),
            "epochs": [dataclasses.astuple(record) for record in self.epochs],
            "terms": [tuple(terms) for terms in self._terms],
            "weights": self._weights,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Self:
        """The recorder whose :meth:`state` this is."""
        records = [EpochRecord(*values) for values in state["epochs"]]
        return cls(state["step_losses"].tolist(), records, state["terms"], state["weights"])

    def dataset(self) -> "xr.Dataset":
        """The history as xarray: ``loss`` over ``step``, the rest over ``epoch``."""
        import xarray as xr

        def by_epoch(name: str) -> tuple[str, list[float]]:
            return "epoch", [getattr(record, name) for record in self.epochs]

        history = xr.Dataset(
            {
                "loss": ("step", self.step_losses),
                **{
                    name: by_epoch(name)
                    for name in ("validation", "kl", "reconstruction", "grad_norm", "nonfinite")
                },
            },
            coords={
                "step": list(range(1, len(self.step_losses) + 1)),
                "epoch": list(range(1, len(self.epochs) + 1)),
                "epoch_step": by_epoch("step"),
            },
        )
        return named(history, OF_FITS)
