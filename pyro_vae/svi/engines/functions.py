"""Say what functions that take many whole steps have in common, and try one out without moving anything."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.batches.batches import Batch
from pyro_vae.svi.engines.updates import adam_states, total_norm
from pyro_vae.svi.engines.verification import close


class StepTerms(NamedTuple):
    """One row per step that was run; totals in nats, as Pyro reports them."""

    loss: Tensor
    kl: Tensor
    reconstruction: Tensor
    grad_norm: Tensor
    """Of the whole gradient, before it is clipped."""
    bad: Tensor
    """Whether loss or gradient was not finite; such a step changed nothing."""


class StepFunction(Protocol):
    """Takes steps of Adam on batches of one size, made from a captured graph."""

    parameters: list[Tensor]
    optimizer: Optimizer
    generator: torch.Generator
    batch_size: int
    dtype: torch.dtype
    max_norm: float
    most_bad: int

    @property
    def steps_per_call(self) -> int:
        """Steps of one call. They take a moment: Python handles an interrupt only between calls."""

    def run(
        self,
        data: Sequence[Tensor],
        index: Tensor,
        kl_weight: Tensor,
        lr: Tensor | None = None,
        *,
        bad_in_a_row: int = 0,
    ) -> StepTerms:
        """Take as many steps as ``index`` has rows, or fewer if ``most_bad`` in a row were not finite.

        Parameters
        ----------
        data
            The tensors that batches are gathered from, by their first axis.
        index
            (steps, batch size), int64: the rows of each batch.
        kl_weight
            (steps,): the weight of the KL at each step.
        lr
            (steps, groups of the optimizer): row j is for the j-th step that is taken, since a schedule does
            not move at a step that is not finite. By default the optimizer's own throughout.
        bad_in_a_row
            Of the steps before, how many of the last were not finite.
        """


def agrees_with(
    wanted: Callable[[Tensor, Batch], Sequence[Tensor]], function: StepFunction, data: Sequence[Tensor]
) -> bool:
    """Whether a function's step has the loss and the gradients that are wanted, from the same noise.

    The gradients are read off Adam's first moments. Nothing is moved.

    Parameters
    ----------
    wanted
        ``wanted(kl_weight, batch)``: loss, KL, reconstruction and a gradient for each parameter, with noise
        from the default generator of the data's device.
    function
        The one to try.
    data
        At least one batch, as for :meth:`StepFunction.run`.
    """
    device = data[0].device
    index = torch.arange(function.batch_size, device=device)
    weight = torch.ones((), dtype=function.dtype, device=device)
    groups = function.optimizer.param_groups
    with _as_it_was(function), torch.random.fork_rng(devices=[]):
        stream = function.generator.get_state()
        _default_generator(device).set_state(stream)
        loss, _, _, *gradients = wanted(weight, tuple(x[index] for x in data))
        moments = [function.optimizer.state[parameter]["exp_avg"] for parameter in function.parameters]
        torch._foreach_zero_(moments)
        function.generator.set_state(stream)
        terms = function.run(data, index[None], weight[None], torch.zeros(1, len(groups)))
        if bool(terms.bad[0]):
            return not all(bool(torch.isfinite(x)) for x in (loss, total_norm(gradients)))
        clip = min(1.0, function.max_norm / max(float(terms.grad_norm[0]), 1e-300))
        first = _first_moments(function, torch._foreach_mul(gradients, clip))
        pairs = zip([terms.loss[0].to(device), *moments], [loss, *first], strict=True)
        return all(close(a, b) for a, b in pairs)


@contextmanager
def _as_it_was(function: StepFunction) -> Iterator[None]:
    """Gives parameters, gradients, the optimizer's state and the random stream back as they were: in place,
    since others may hold these tensors."""
    states = adam_states(function.optimizer, function.parameters)
    tensors = [*function.parameters, *(x for state in states for x in state.values())]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [parameter.grad for parameter in function.parameters]
    stream = function.generator.get_state()
    try:
        yield
    finally:
        function.generator.set_state(stream)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(function.parameters, gradients, strict=True):
            parameter.grad = gradient


def _first_moments(function: StepFunction, gradients: Sequence[Tensor]) -> list[Tensor]:
    """What Adam's first moments are after one step from zero."""
    group_of = {id(p): group for group in function.optimizer.param_groups for p in group["params"]}
    moments = []
    for parameter, gradient in zip(function.parameters, gradients, strict=True):
        group = group_of[id(parameter)]
        ascent = -1 if group["maximize"] else 1
        decayed = ascent * gradient + group["weight_decay"] * parameter.detach()
        moments.append((1 - group["betas"][0]) * decayed)
    return moments


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
