"""From gradients to parameters: Pyro's optimizers, one for each parameter, moved all at once.

``PyroOptim`` keeps an optimizer of torch for every parameter, and asks each by itself; for a small program
that takes as long as the loss. Where they are Adam, AdamW, ``ClippedAdam`` or plain SGD, the same numbers
come from one call for all of them. Their states stay what their own steps would have left, so that saving,
loading and schedules find what they expect; learning rates are read from them at each step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

_UNUSUAL = ("amsgrad", "centered_variance", "capturable", "differentiable", "momentum", "nesterov")
_WHOLE = (torch.float32, torch.float64)


@dataclass
class _Member:
    """One parameter, and the optimizer that Pyro made for it."""

    parameter: Tensor
    optimizer: Any
    group: dict[str, Any]
    states: Any
    state: dict[str, Any]
    clip_norm: float | None
    clip_value: float | None

    @property
    def is_current(self) -> bool:
        """Whether nobody has loaded another state since."""
        optimizer = self.optimizer
        return optimizer.state is self.states and optimizer.param_groups[0] is self.group


@dataclass
class Plan:
    """How all parameters with a gradient move at once."""

    optim: PyroOptim
    which: list[bool]
    members: list[_Member]
    move: Callable[[list[_Member], list[Tensor]], None]

    def take(self, optim: Any, gradients: Sequence[Tensor | None]) -> bool:
        """One step; whether it could be taken."""
        if optim is not self.optim or not all(member.is_current for member in self.members):
            return False
        if [gradient is not None for gradient in gradients] != self.which:
            return False
        with torch.no_grad():
            self.move(self.members, self._clipped([g for g in gradients if g is not None]))
        return True

    def _clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """By each parameter's own norm, as Pyro does."""
        for i, member in enumerate(self.members):
            if member.clip_norm is not None:
                norm = torch.linalg.vector_norm(gradients[i])
                gradients[i] = gradients[i] * (member.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            if member.clip_value is not None:
                gradients[i] = gradients[i].clamp(-member.clip_value, member.clip_value)
        return gradients


def make_plan(optim: Any, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Plan | None:
    """A plan for the parameters with a gradient, or None where each must move by itself.

    Every parameter has had a step of its own optimizer before, so that all states exist.
    """
    if type(optim) not in (PyroOptim, PyroLRScheduler):
        return None
    moving = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    members = [_member(optim, parameter) for parameter in moving]
    known = [member for member in members if member is not None]
    kinds = {type(member.optimizer) for member in known}
    if len(known) != len(members) or len(kinds) != 1 or not _alike(moving):
        return None
    move = _MOVES.get(kinds.pop())
    if move is None:
        return None
    return Plan(optim, [gradient is not None for gradient in gradients], known, move)


def take_each_step(optim: Any, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """One step by Pyro's optimizer itself."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient
    distinct = set(parameters)
    optim(distinct)
    zero_grads(distinct)


def _member(optim: PyroOptim, parameter: Tensor) -> _Member | None:
    made = optim.optim_objs.get(parameter)
    if made is None:
        return None
    optimizer = getattr(made, "optimizer", made)  # a schedule's
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    group, state = optimizer.param_groups[0], optimizer.state.get(parameter)
    plain = isinstance(group["lr"], float | int) and not any(group.get(name) for name in _UNUSUAL)
    if len(optimizer.param_groups) != 1 or not plain or (not state and type(optimizer) is not SGD):
        return None
    clip = optim._get_grad_clip_args(parameter)  # type: ignore[arg-type]
    return _Member(
        parameter,
        optimizer,
        group,
        optimizer.state,
        state or {},
        clip.get("clip_norm"),
        clip.get("clip_value"),
    )


def _alike(parameters: Sequence[Tensor]) -> bool:
    return len({(p.dtype, p.device) for p in parameters}) == 1 and parameters[0].dtype in _WHOLE


def _together(members: list[_Member], key: Callable[[_Member], Any]) -> dict[Any, list[int]]:
    """Which members have the same options now."""
    groups: dict[Any, list[int]] = {}
    for i, member in enumerate(members):
        groups.setdefault(key(member), []).append(i)
    return groups


def _move_by_adam(members: list[_Member], gradients: list[Tensor]) -> None:
    def options(member: _Member) -> Any:
        group = member.group
        return group["lr"], group["betas"], group["eps"], group["weight_decay"], group["maximize"]

    for (lr, (beta1, beta2), eps, weight_decay, maximize), which in _together(members, options).items():
        chosen = [members[i] for i in which]
        decoupled = chosen[0].group.get("decoupled_weight_decay", type(chosen[0].optimizer) is AdamW)
        steps = [member.state["step"] for member in chosen]
        torch._foreach_add_(steps, 1)
        _fused(
            chosen,
            [gradients[i] for i in which],
            steps,
            decoupled=decoupled,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
        )


def _move_by_clipped_adam(members: list[_Member], gradients: list[Tensor]) -> None:
    """Adam whose ε is added before the bias of the second moment is corrected: ε / √(1 − β₂ᵗ) after it."""

    def options(member: _Member) -> Any:
        group, state = member.group, member.state
        group["lr"] *= group["lrd"]
        state["step"] += 1
        return (
            group["lr"],
            group["betas"],
            group["eps"],
            group["weight_decay"],
            group["clip_norm"],
            state["step"],
        )

    for (lr, (beta1, beta2), eps, weight_decay, bound, count), which in _together(members, options).items():
        chosen = [members[i] for i in which]
        clipped = torch._foreach_clamp_max(
            torch._foreach_clamp_min([gradients[i] for i in which], -bound), bound
        )
        _fused(
            chosen,
            list(clipped),
            [torch.tensor(float(count), device=m.parameter.device) for m in chosen[:1]] * len(chosen),
            decoupled=False,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps / math.sqrt(1 - beta2**count),
            maximize=False,
        )


def _fused(
    members: list[_Member], gradients: list[Tensor], steps: list[Tensor], *, decoupled: bool, **options: Any
) -> None:
    device = members[0].parameter.device
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    kernel(
        [member.parameter for member in members],
        gradients,
        [member.state["exp_avg"] for member in members],
        [member.state["exp_avg_sq"] for member in members],
        [],
        steps if steps[0].device == device else [step.to(device) for step in steps],
        amsgrad=False,
        **options,
    )


def _move_by_sgd(members: list[_Member], gradients: list[Tensor]) -> None:
    def options(member: _Member) -> Any:
        return member.group["lr"], member.group["weight_decay"], member.group["maximize"]

    for (lr, weight_decay, maximize), which in _together(members, options).items():
        parameters, along = [members[i].parameter for i in which], [gradients[i] for i in which]
        if maximize:
            along = list(torch._foreach_neg(along))
        if weight_decay:
            along = list(torch._foreach_add(along, parameters, alpha=weight_decay))
        torch._foreach_add_(parameters, along, alpha=-lr)


_MOVES: dict[type, Callable[[list[_Member], list[Tensor]], None]] = {
    Adam: _move_by_adam,
    AdamW: _move_by_adam,
    ClippedAdam: _move_by_clipped_adam,
    SGD: _move_by_sgd,
}
