"""``SVI``: Pyro's own loop with a captured step."""

from typing import Any

import pyro
import pyro.infer
import torch
from pyro.infer.util import torch_item, zero_grads
from pyro.optim import PyroOptim
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.arguments import check_programs
from pyro_vae.svi.pyro_svi.capturing import CapturedLoss
from pyro_vae.svi.pyro_svi.entries import Entry
from pyro_vae.svi.pyro_svi.updates import make_plan, take_each_step


class SVI(pyro.infer.SVI):
    r"""Pyro's ``SVI``, whose step is captured: change the import and keep your loop.

    .. code-block:: python

        from pyro_vae import SVI          # in place of: from pyro.infer import SVI

    Losses, gradients, random draws, parameters (in Pyro's global store) and the optimizers' states are
    Pyro's; only the time is not. The first step is Pyro's own. At the second the program is traced: what is
    left is a graph of tensor operations for the loss and its gradients, which later steps replay.

    A graph is kept for each signature: shapes and dtypes of tensors, and the integers, words and nesting
    around them. It is used only while everything holds that the program reads besides: globals, closures,
    attributes, entries of dicts, training flags, parameters, which is checked at every step. A float or a
    tensor there that changes, as in annealing, becomes an input of the graph. At the first steps, and then
    ever more rarely, the step is taken by Pyro and compared. What cannot be captured (a branch on a tensor's
    value, ``.item()``, sizes that depend on data, numpy) runs as Pyro's own step, and the logger
    ``pyro_vae.svi`` names the line that is the reason. What a program does besides (printing, counting)
    happens only when it runs; one that changes what it reads is left to Pyro.

    A step whose loss is not finite, or in which a distribution would have refused its arguments or a sample,
    is taken by Pyro, which warns or raises.

    Parameters
    ----------
    model, guide
        Callables with Pyro primitives.
    optim
        Of ``pyro.optim``, or a factory such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
    loss
        Any ELBO of Pyro, or ``loss(model, guide, *args, **kwargs)`` that returns a tensor to differentiate.
    loss_and_grads, num_samples, num_steps
        As in Pyro.

    Raises
    ------
    ValueError
        By Pyro, if ``optim`` is of another kind.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> from pyro.infer import Trace_ELBO
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model(x):
    ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    >>> pyro.clear_param_store()
    >>> pyro.set_rng_seed(0)
    >>> svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    >>> x = 3.0 + torch.randn(100)
    >>> losses = [svi.step(x) for _ in range(300)]
    >>> bool((pyro.param("AutoNormal.locs.loc") - x.mean()).abs() < 0.3)
    True
    >>> svi.engine
    'captured'
    """

    def __init__(self, model: Any, guide: Any, optim: Any, loss: Any, *args: Any, **kwargs: Any) -> None:
        check_programs(model=model, guide=guide)
        super().__init__(model, guide, _as_pyro(optim), loss, *args, **kwargs)  # type: ignore[no-untyped-call]
        self._steps: CapturedLoss | None = None
        self._losses: CapturedLoss | None = None

    @property
    def engine(self) -> str:
        """What the steps are taken by: ``"captured"`` if any signature has a graph, else ``"pyro"``."""
        return "captured" if self._steps is not None and any(self._steps.entries.values()) else "pyro"

    @property
    def reasons(self) -> list[str]:
        """Why steps are left to Pyro, with the lines of the program; empty if none is."""
        return [] if self._steps is None else list(self._steps.reasons)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step of the optimizer on a batch; return the loss, in total nats, as Pyro does."""
        if _handlers_listen():
            return super().step(*args, **kwargs)  # type: ignore[no-untyped-call]
        steps = self._steps
        if steps is None or not self._is_of(steps, self.loss_and_grads):
            steps = self._steps = CapturedLoss(self.loss_and_grads, self.model, self.guide, gradients=True)
        evaluation = steps(args, kwargs)
        if evaluation.entry is None:
            parameters = set(evaluation.parameters)
            self.optim(parameters)
            zero_grads(parameters)
        else:
            self._move(evaluation.entry, evaluation.parameters, evaluation.outcome.gradients)
        return _as_numbers(evaluation.outcome.loss)

    def _move(self, entry: Entry, parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
        """One step of the optimizers, all at once where that can be."""
        gradients = [p.grad if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        if entry.plan is None or not entry.plan.take(self.optim, gradients):
            take_each_step(self.optim, parameters, gradients)
            entry.plan = make_plan(self.optim, parameters, gradients)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch, in total nats, as Pyro does."""
        if _handlers_listen():
            return super().evaluate_loss(*args, **kwargs)  # type: ignore[no-untyped-call]
        losses = self._losses
        if losses is None or not self._is_of(losses, self.loss):
            losses = self._losses = CapturedLoss(self.loss, self.model, self.guide, gradients=False)
        with torch.no_grad():
            return _as_numbers(losses(args, kwargs).outcome.loss)

    def _is_of(self, captured: CapturedLoss, loss: Any) -> bool:
        return captured.loss is loss and captured.model is self.model and captured.guide is self.guide


def _as_pyro(optim: Any) -> Any:
    """A factory of torch's optimizers as Pyro takes it."""
    if callable(optim) and not isinstance(optim, PyroOptim | Optimizer):
        return PyroOptim(optim, {})
    return optim


def _as_numbers(loss: Any) -> Any:
    return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)


def _handlers_listen() -> bool:
    """Whether somebody outside would see, or change, what the program does."""
    return any(type(handler) is not BlockMessenger for handler in _PYRO_STACK)
