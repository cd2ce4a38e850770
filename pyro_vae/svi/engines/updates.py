"""Move parameters by gradients, with nothing in between that a step does not need."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from pyro_vae.svi.engines.steps import CannotError

Update = Callable[[Sequence[Tensor]], None]
"""``update(gradients)``: one step of the optimizer; gradients in the order of the parameters."""

GuardedUpdate = Callable[[Sequence[Tensor], Tensor, Tensor], None]
"""``update(gradients, rates, skip)``: the same with the rate of each group, in single precision, and a flag
for no step at all, both on the device."""


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
    if is_plain_fused_adam(optimizer):
        return _fused_adam(optimizer, parameters)

    def update(gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return update


def is_plain_fused_adam(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step is torch's fused Adam and nothing else."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return (
        type(optimizer) is Adam
        and not hooks
        and all(group["fused"] and not group["amsgrad"] for group in optimizer.param_groups)
    )


class _Group(NamedTuple):
    """A group of an optimizer as fused Adam takes it: lists of tensors, with Adam's states begun."""

    options: dict[str, Any]
    indices: list[int]
    """Of its parameters among all."""
    tensors: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
    """Parameters, first and second moments, steps."""

    def move(
        self, gradients: Sequence[Tensor], lr: float | Tensor, *, found_inf: Tensor | None = None
    ) -> None:
        leaves, first, second, steps = self.tensors
        beta1, beta2 = self.options["betas"]
        torch._fused_adam_(
            leaves,
            [gradients[i] for i in self.indices],
            first,
            second,
            [],
            steps,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=self.options["weight_decay"],
            eps=self.options["eps"],
            amsgrad=False,
            maximize=self.options["maximize"],
            found_inf=found_inf,
        )


def _groups(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[_Group]:
    position = {id(parameter): i for i, parameter in enumerate(parameters)}
    groups = []
    for group in optimizer.param_groups:
        states = adam_states(optimizer, group["params"])
        first, second, steps = ([state[k] for state in states] for k in ("exp_avg", "exp_avg_sq", "step"))
        indices = [position[id(parameter)] for parameter in group["params"]]
        groups.append(_Group(group, indices, (list(group["params"]), first, second, steps)))
    optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedules ask for
    return groups


def _fused_adam(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Update:
    groups = [group for group in _groups(optimizer, parameters) if group.indices]
    # A number would be made a tensor once for every parameter and step.
    ones = [torch.ones_like(group.tensors[-1][0]) for group in groups]

    @torch.no_grad()
    def update(gradients: Sequence[Tensor]) -> None:
        for group, one in zip(groups, ones, strict=True):
            torch._foreach_add_(group.tensors[-1], one, alpha=1)
            group.move(gradients, group.options["lr"])

    return update


def guarded_adam(optimizer: Optimizer, parameters: Sequence[Tensor]) -> GuardedUpdate:
    """Adam's update for a device that is told nothing by the host. Raises CannotError if the optimizer is not
    torch's fused Adam."""
    if not is_plain_fused_adam(optimizer):
        raise CannotError(f"its optimizer is {type(optimizer).__name__}, and not Adam with fused=True")
    groups = _groups(optimizer, parameters)

    @torch.no_grad()
    def update(gradients: Sequence[Tensor], rates: Tensor, skip: Tensor) -> None:
        found_inf = skip.to(torch.float32)
        taken = 1 - found_inf
        for group, rate in zip(groups, rates.unbind(), strict=True):
            if group.indices:
                steps = group.tensors[-1]
                torch._foreach_add_(steps, [taken] * len(steps))
                group.move(gradients, rate, found_inf=found_inf)

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


def adam_states(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Adam's state of each parameter, in the optimizer; begun as Adam itself does where there is none yet."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return [optimizer.state[parameter] for parameter in parameters]
