"""From gradients to the next parameters, with nothing in between that a step does not need."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

__all__ = ["Update", "begun", "clipped", "make_update", "restore_optimizer", "total_norm"]

Update = Callable[[Sequence[Tensor]], None]
"""``update(gradients)``: one step of the optimizer; gradients in the order of the parameters."""


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
    return norm


def clipped(gradients: Sequence[Tensor], norm: float, max_norm: float | None) -> Sequence[Tensor]:
    """The gradients scaled to ``max_norm`` where their norm exceeds it; never changed in place, for two of
    them may be one tensor."""
    if max_norm is None or norm <= max_norm:
        return gradients
    return torch._foreach_mul(list(gradients), max_norm / norm)


def make_update(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Update:
    """The update of an optimizer: fused Adam called directly, any other by its ``step``.

    ``torch.optim.Adam`` looks at every parameter, state and hook again at each step, which takes longer than
    the update of a small model. Called directly it keeps the same state, in the optimizer, so that whoever
    asks the optimizer (a schedule, ``state_dict``) finds what ``step`` would have left.
    """
    if _is_plain_fused_adam(optimizer):
        return _fused_adam(optimizer, parameters)

    def update(gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return update


def _is_plain_fused_adam(optimizer: Optimizer) -> bool:
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return (
        type(optimizer) is Adam
        and not hooks
        and all(group["fused"] and not group["amsgrad"] for group in optimizer.param_groups)
    )


def _fused_adam(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Update:
    position = {id(parameter): i for i, parameter in enumerate(parameters)}
    groups: list[tuple[dict[str, Any], list[int], Tensor, list[list[Tensor]]]] = []
    for group in optimizer.param_groups:
        states = [begun(optimizer.state[parameter], parameter) for parameter in group["params"]]
        lists = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        if group["params"]:
            indices = [position[id(parameter)] for parameter in group["params"]]
            # a number would be made a tensor once for every parameter and step
            one = torch.ones_like(lists[2][0])
            groups.append((group, indices, one, [list(group["params"]), *lists]))
    optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedules ask for

    @torch.no_grad()
    def update(gradients: Sequence[Tensor]) -> None:
        for group, indices, one, (leaves, first, second, steps) in groups:
            beta1, beta2 = group["betas"]
            torch._foreach_add_(steps, one, alpha=1)
            torch._fused_adam_(
                leaves,
                [gradients[i] for i in indices],
                first,
                second,
                [],
                steps,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )

    return update


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, laid out in memory as the parameters are: fused optimizers walk through both
    together."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                laid_out = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                values[name] = laid_out.copy_(value)


def begun(state: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter, as Adam itself begins it."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
