"""Pyro's own losses as functions of tensors.

Pyro's estimators turn the loss into a number on the way and call ``backward`` themselves. While they are
traced, the number stays a tensor and the gradients are handed over.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled as validates_inference
from pyro.infer.util import validation_enabled as inference_validation
from pyro.poutine.util import enable_validation, is_validation_enabled
from torch import Tensor

from pyro_vae.graphs.reading import Watch


class LossWatch(Watch):
    """Watches a loss of Pyro's that calls ``backward``.

    Parameters
    ----------
    parameters
        That gradients are taken for.

    Attributes
    ----------
    gradients
        Of the parameters so far, None where there is none.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.parameters = list(parameters)
        self.gradients: list[Tensor | None] = [None] * len(self.parameters)
        self.answers[Tensor.backward] = self._backward
        self.answers[Tensor.item] = self._item
        self.answers[Tensor.__bool__] = self._truth

    def _backward(
        self,
        frame: Any,
        loss: Tensor,
        gradient: Any = None,
        retain_graph: Any = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        del frame
        if create_graph or inputs is not None:
            raise ValueError("the loss differentiates its gradient, or only some of its inputs")
        with self:  # for hooks on the way
            found = torch.autograd.grad(
                loss, self.parameters, gradient, retain_graph=retain_graph, allow_unused=True
            )
        for i, new in enumerate(found):
            old = self.gradients[i]
            if new is not None:
                self.gradients[i] = new if old is None else old + new

    def _item(self, frame: Any, tensor: Tensor) -> Any:
        """Losses are summed up in double precision, as Python does."""
        if not _is_of(frame, "/pyro/infer/"):
            return self.answer_with_number(frame, tensor)
        dtype = tensor.dtype if tensor.device.type == "mps" else torch.float64
        return tensor.detach().to(dtype, copy=True)  # no alias: numbers are not changed in place

    def _truth(self, frame: Any, tensor: Tensor) -> Any:
        """Pyro asks for NaN to warn of it, and whether every probability is positive to save work."""
        if _is_of(frame, "/pyro/util.py"):
            return False
        if _is_of(frame, "/pyro/infer/util.py") and frame.f_code.co_name == "compute_expectation":
            return True
        return self.answer_with_truth(frame, tensor)


def _is_of(frame: Any, file: str) -> bool:
    return file in frame.f_code.co_filename.replace("\\", "/")


@contextmanager
def without_own_checks() -> Iterator[None]:
    """Pyro's checks of shapes and names are done when it runs; those of distributions stay as they are."""
    poutines = is_validation_enabled()
    try:
        enable_validation(False)
        with inference_validation(False):
            yield
    finally:
        enable_validation(poutines)


def validation() -> tuple[bool, ...]:
    """What of Pyro's validation is on."""
    return dist.is_validation_enabled(), validates_inference(), is_validation_enabled()


def parameters_of(trace: poutine.Trace) -> list[Tensor]:
    """The distinct unconstrained parameters that a run asked for."""
    found = {id(p): p for site in trace.nodes.values() for p in [_unconstrained(site["value"])]}
    return list(found.values())


def _unconstrained(value: Any) -> Tensor:
    found: Tensor = value.unconstrained()
    return found


def names_of(parameters: Sequence[Tensor]) -> list[str]:
    """Of parameters in Pyro's store."""
    store = pyro.get_param_store()
    return [str(store.param_name(parameter)) for parameter in parameters]


def loss_and_parameters(loss: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    """What a loss returns, and the parameters that it asked for."""
    with poutine.trace(param_only=True) as capture:
        value = loss()
    return value, parameters_of(capture.trace)
