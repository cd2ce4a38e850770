"""Trying steps out without moving anything."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.batches.batches import Batch
from pyro_vae.svi.engines.steps import Steps
from pyro_vae.svi.engines.updates import adam_states, total_norm
from pyro_vae.svi.engines.verification import close

__all__ = ["as_it_was", "gives"]


def gives(steps: Steps, data: Sequence[Tensor], wanted: Callable[[Tensor, Batch], Sequence[Tensor]]) -> bool:
    """Whether a step has the loss and the gradients that it should have, from the same noise.

    The gradients are read off Adam's first moments.

    Parameters
    ----------
    steps
        Nothing of theirs is moved.
    data
        At least one batch, as for :meth:`~pyro_vae.svi.engines.steps.Steps.run`.
    wanted
        ``wanted(kl_weight, batch)``: loss, KL, reconstruction and a gradient for each parameter, with noise
        from the default generator of the data's device.
    """
    device = data[0].device
    index = torch.arange(steps.batch_size, device=device)
    weight = torch.ones((), dtype=steps.dtype, device=device)
    groups = steps.optimizer.param_groups
    with as_it_was(steps), torch.random.fork_rng(devices=[]):
        stream = steps.generator.get_state()
        _default_generator(device).set_state(stream)
        loss, _, _, *gradients = wanted(weight, tuple(x[index] for x in data))
        moments = [steps.optimizer.state[parameter]["exp_avg"] for parameter in steps.parameters]
        torch._foreach_zero_(moments)
        steps.generator.set_state(stream)
        terms = steps.run(data, index[None], weight[None], torch.zeros(1, len(groups)))
        if bool(terms.bad[0]):
            return not all(bool(torch.isfinite(x)) for x in (loss, total_norm(gradients)))
        clip = min(1.0, steps.max_norm / max(float(terms.grad_norm[0]), 1e-300))
        first = _first_moments(steps, torch._foreach_mul(gradients, clip))
        pairs = zip([terms.loss[0].to(device), *moments], [loss, *first], strict=True)
        return all(close(a, b) for a, b in pairs)


@contextmanager
def as_it_was(steps: Steps) -> Iterator[None]:
    """Gives parameters, gradients, the optimizer's state and the random stream back as they were: in place,
    since others may hold these tensors."""
    states = adam_states(steps.optimizer, steps.parameters)
    tensors = [*steps.parameters, *(x for state in states for x in state.values())]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [parameter.grad for parameter in steps.parameters]
    bad, stream = steps.bad_in_a_row, steps.generator.get_state()
    steps.bad_in_a_row = 0
    try:
        yield
    finally:
        steps.bad_in_a_row = bad
        steps.generator.set_state(stream)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(steps.parameters, gradients, strict=True):
            parameter.grad = gradient


def _first_moments(steps: Steps, gradients: Sequence[Tensor]) -> list[Tensor]:
    """What Adam's first moments are after one step from zero."""
    group_of = {id(p): group for group in steps.optimizer.param_groups for p in group["params"]}
    moments = []
    for parameter, gradient in zip(steps.parameters, gradients, strict=True):
        group = group_of[id(parameter)]
        ascent = -1 if group["maximize"] else 1
        decayed = ascent * gradient + group["weight_decay"] * parameter.detach()
        moments.append((1 - group["betas"][0]) * decayed)
    return moments


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
