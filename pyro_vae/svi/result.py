"""What a fit returns."""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro.params.param_store import StateDict

from pyro_vae.arguments import check_programs, require_path
from pyro_vae.guides.refined import Covariance, Refined
from pyro_vae.pairs.isolation import Program, empty_store, owner
from pyro_vae.pairs.parameters import bound, held_beside, in_store, named_tensors
from pyro_vae.svi.display import epoch_losses, html_table, loss_figure
from pyro_vae.svi.history import Recorder
from pyro_vae.svi.state import saved as saved_fits
from pyro_vae.svi.state.frozen import frozen_buffers

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted pair and how it was fitted.

    ``model`` and ``guide`` are the objects that were given, trained in place; a plain function comes back
    wrapped, so that it runs with the ``pyro.param`` values of this fit (:meth:`parameters` does the same for
    code that calls the function itself).
    """

    model: Program
    guide: Program
    _history: "Recorder | xr.Dataset" = field(repr=False)
    seed: int
    device: str
    engine: str
    steps_per_second: float
    _state: StateDict = field(repr=False, default_factory=empty_store)
    _pending: dict[str, Any] = field(repr=False, default_factory=dict)

    @functools.cached_property
    def history(self) -> "xr.Dataset":
        """``loss`` over ``step``; ``validation``, ``kl``, ``reconstruction``, ``grad_norm``, ``nonfinite``
        over ``epoch``. Losses in nats per observation.

        Made when first asked for: a program that only fits does not wait for the import of xarray, half a
        second.
        """
        return self._history.dataset() if isinstance(self._history, Recorder) else self._history

    def __repr__(self) -> str:
        steps, last = self.history.sizes["step"], float(self.history["loss"][-1])
        return (
            f"Fit({steps} steps, last loss {last:.4g} nats per observation, seed={self.seed}, "
            f"device={self.device!r}, engine={self.engine!r}, {self.steps_per_second:.0f} steps/s)"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        last = self.history.isel(epoch=-1)
        rows = {
            "steps": f"{self.history.sizes['step']} in {self.history.sizes['epoch']} epochs",
            "loss of the last epoch": f"{epoch_losses(self.history)[-1]:.4g} nats per observation",
            "KL": f"{float(last['kl']):.4g} nats per observation",
            "held-out loss": f"{float(last['validation']):.4g} nats per observation",
            "steps skipped, not finite": int(self.history["nonfinite"].sum()),
            "seed": self.seed,
            "device": self.device,
            "engine": f"{self.engine}, {self.steps_per_second:.0f} steps per second",
        }
        if math.isnan(last["validation"]):
            del rows["held-out loss"]
        return html_table(_names(self.model, self.guide), rows)

    def plot(self) -> "Figure":
        """The training as a matplotlib figure: the loss of every step and every epoch, and the held-out loss
        where there was validation, in nats per observation.

        Examples
        --------
        ``fit.plot().savefig("loss.png")``
        """
        return loss_figure(self.history, _names(self.model, self.guide))

    @contextmanager
    def parameters(self) -> Iterator[None]:
        """Puts what the fit's plain functions keep by ``pyro.param`` and ``pyro.module`` into Pyro's store,
        for this block.

        Examples
        --------
        ``with fit.parameters(): Predictive(model, guide=guide, num_samples=100)(x)``
        """
        with in_store(self._state, self._pending):
            yield

    def refined(self, *, steps: int = 12, stop: float = 0.1, covariance: Covariance = "full") -> Refined:
        """The fit's guide, refined for each observation by steps on the fit's model: see
        :class:`pyro_vae.guides.Refined`.

        Examples
        --------
        ``diagnose(fit.model, fit.refined(), held_out)``
        """
        return Refined(self.guide, model=self.model, steps=steps, stop=stop, covariance=covariance)

    def save(self, path: str | Path) -> Path:
        """Write ``params.safetensors``, ``fit.json`` and ``history.nc`` into the folder ``path``; nothing is
        pickled. Whenever the process ends, an older fit that was there or this one can be loaded, whole.

        Raises
        ------
        OSError
            If the folder cannot be written, or there is a file in its place.
        """
        plain = self.saved()
        return saved_fits.write(_folder(path), plain.tensors, plain.record, plain.history)

    def saved(self) -> saved_fits.SavedFit:
        """What :meth:`save` writes, as plain data that can be sent to another process."""
        not_yet_called = {k: v for k, v in self._pending.items() if k not in self._state["params"]}
        tensors = named_tensors(self.model, self.guide, self._state)
        beside = held_beside(self._state["params"])
        tensors |= {f"store.{name}": value for name, value in (not_yet_called | beside).items()}
        known = {id(tensor) for tensor in tensors.values()}
        untrained = frozen_buffers(self.model, self.guide).items()
        tensors |= {name: tensor for name, tensor in untrained if id(tensor) not in known}
        record = saved_fits.FitRecord(self.seed, self.device, self.engine, self.steps_per_second)
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return saved_fits.SavedFit(own, record, self.history)

    @classmethod
    def load(cls, path: str | Path, model: Program, guide: Program) -> "Fit":
        """Read a saved fit into ``model`` and ``guide``, which must have the structure of the pair that was
        fitted.

        Parameters go into the modules in place; those of plain functions come back with the fit's ``model``
        and ``guide``.

        Raises
        ------
        TypeError
            If ``path`` is no path, or ``model`` or ``guide`` no program.
        FileNotFoundError
            If the folder holds no fit.
        ValueError
            If the pair does not match, naming the first parameter that differs; or if a file is damaged.
        """
        check_programs(model=model, guide=guide)
        saved = saved_fits.read(_folder(path))
        pending = saved_fits.load_into(saved.tensors, model, guide)
        state = empty_store()
        return cls(
            bound(model, state, pending),
            bound(guide, state, pending),
            saved.history,
            saved.record.seed,
            saved.record.device,
            saved.record.engine,
            saved.record.steps_per_second,
            _state=state,
            _pending=pending,
        )


def _names(model: Program, guide: Program) -> str:
    """AmortizedNormal for VAE: modules by their classes, functions by their own names."""
    guide_name, model_name = (
        getattr(program, "__name__", type(program).__name__)
        if (module := owner(program)) is None
        else type(module).__name__
        for program in (guide, model)
    )
    return f"{guide_name} for {model_name}"


def _folder(path: Any) -> Path:
    require_path("path", path)
    return Path(path)
