"""Whole steps of Adam on the objective, many per call."""

import ctypes
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.optim import Adam, Optimizer

from pyro_vae.devices import WORTH_A_SECOND_THREAD
from pyro_vae.svi.engines.functions import StepTerms
from pyro_vae.svi.engines.native.build import load
from pyro_vae.svi.engines.native.call import Call
from pyro_vae.svi.engines.native.emitter import emit
from pyro_vae.svi.engines.native.lowering import lower
from pyro_vae.svi.engines.native.pace import Pace
from pyro_vae.svi.engines.optimizers import constant_rates
from pyro_vae.svi.engines.steps import CannotError
from pyro_vae.svi.engines.updates import adam_states


def supported(graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> str | None:
    """Why a graph cannot become native, by the name of the operation, or None if it can. Nothing runs.

    The arguments are those of :class:`NativeFunction`.
    """
    try:
        lower(graph, parameters, batch)
    except CannotError as error:
        return str(error)
    return None


class NativeFunction:
    """Steps of gradient descent as one compiled function.

    Each step gathers its rows of the data, draws the same noise from torch's stream as the graph would,
    computes loss and gradients, and applies Adam to the parameters in place. A step whose loss or gradient is
    not finite changes nothing and is counted. The optimizer keeps its own state, as if it had taken the steps
    itself, so that a fit may go on with another engine at any step.

    Parameters
    ----------
    graph
        What :func:`~pyro_vae.svi.engines.gradients.capture_step` returns: ``graph(*parameters,
        kl_weight, *batch)`` gives loss, KL, reconstruction and a gradient for each parameter.
    parameters
        The graph's leading inputs; contiguous, on the CPU, float32 or float64.
    batch
        The graph's last inputs, for their shapes: the graph is for batches of this size alone.
    optimizer
        ``torch.optim.Adam`` over these parameters, without weight decay, amsgrad or maximize. Every group may
        have its own lr and eps.
    max_norm
        Clips the norm of the whole gradient.
    most_bad
        This number of steps in a row that are not finite ends a run; the random stream is then where they
        left it.
    threads
        By default one for a step so small that threads would cost more to wait for each other, else torch's
        number or one, whichever the clock says (:class:`~pyro_vae.svi.engines.native.pace.Pace`).
    generator
        Where the noise comes from; torch's default generator if none is given.

    Raises
    ------
    CannotError
        If the graph or the optimizer is not of these, by the name of what is not known; or if there is no C++
        compiler, it fails, or what it makes is not such a library.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        parameters: Sequence[Tensor],
        batch: Sequence[Tensor],
        optimizer: Optimizer,
        *,
        max_norm: float | None = None,
        most_bad: int = 3,
        threads: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.program = lower(graph, parameters, batch)
        self.batch_size, self.dtype = self.program.batch_size, self.program.dtype
        self.parameters, self.optimizer = list(parameters), optimizer
        self._groups = _groups(optimizer, self.parameters)
        self._dtypes = [x.dtype for x in batch]
        self._converted: dict[int, tuple[Any, Tensor, Tensor]] = {}
        """By address, with the tensor itself, so that the address stays its own."""
        self._constants = [getattr(graph, name) for name in self.program.constants]
        self.max_norm = math.inf if max_norm is None else max_norm
        self.most_bad = most_bad
        few = self.program.flops < WORTH_A_SECOND_THREAD
        choices = [threads] if threads else sorted({1, 1 if few else torch.get_num_threads()})
        self._pace = Pace(choices, self.program.flops)
        self.generator = torch.default_generator if generator is None else generator
        self._library = load(emit(self.program), "run", "arena_size", "packing_size", "squares_size")
        self._library.run.restype = ctypes.c_int64
        self._arena = torch.zeros(self._size("arena_size"), dtype=self.program.dtype)
        self._packing = torch.zeros(choices[-1] * self._size("packing_size"), dtype=self.program.dtype)
        self._squares = torch.zeros(self._size("squares_size"), dtype=torch.float64)

    def _size(self, name: str) -> int:
        return ctypes.c_int64.in_dll(self._library, name).value

    @property
    def steps_per_call(self) -> int:
        """Steps of one call: a tenth of a second, for Python handles an interrupt only between calls."""
        return self._pace.steps

    def run(
        self,
        data: Sequence[Tensor],
        index: Tensor,
        kl_weight: Tensor,
        lr: Tensor | None = None,
        *,
        bad_in_a_row: int = 0,
    ) -> StepTerms:
        """Take steps: see :class:`~pyro_vae.svi.engines.functions.StepFunction`.

        Raises
        ------
        ValueError
            If shapes or types are not those, or a row is not in the data.
        """
        steps, dtype = len(index), self.program.dtype
        data = self._checked(data, index, kl_weight)
        rates = self._rates(lr, steps)
        loss, kl, reconstruction, norm = (torch.empty(steps, dtype=dtype) for _ in range(4))
        bad = torch.zeros(steps, dtype=torch.bool)
        index, kl_weight = index.contiguous(), kl_weight.to(dtype).contiguous()
        done = good = 0
        while done < steps and bad_in_a_row < self.most_bad:
            part = slice(done, done + min(steps - done, self._pace.steps))
            results = [x[part] for x in (loss, kl, reconstruction, norm, bad)]
            ran, taken = self._call(data, index[part], kl_weight[part], rates[good:], results, bad_in_a_row)
            for flag in bad[done : done + ran].tolist():
                bad_in_a_row = bad_in_a_row + 1 if flag else 0
            done, good = done + ran, good + taken
        return StepTerms(*(x[:done] for x in (loss, kl, reconstruction, norm, bad)))

    def _checked(self, data: Sequence[Tensor], index: Tensor, kl_weight: Tensor) -> list[Tensor]:
        program = self.program
        if index.dtype != torch.int64 or index.dim() != 2 or index.shape[1] != program.batch_size:
            raise ValueError(
                f"index is of {index.dtype} and shape {tuple(index.shape)}; give int64 of shape "
                f"(steps, {program.batch_size})"
            )
        if kl_weight.shape != (len(index),):
            raise ValueError(f"kl_weight has shape {tuple(kl_weight.shape)}; give ({len(index)},)")
        sizes = [buffer.size // program.batch_size for buffer in program.data]
        given = [(x.dtype, x[0].numel()) for x in data]
        if given != [*zip(self._dtypes, sizes, strict=True)]:
            raise ValueError(f"data has parts of (dtype, row size) {given}, unlike the batch of the graph")
        rows = min(len(x) for x in data)
        low, high = (int(end) for end in index.aminmax()) if index.numel() else (0, 0)
        if not 0 <= low <= high < rows:
            raise ValueError(f"index goes from {low} to {high}, but data has {rows} rows")
        return [self._as_numbers(x) for x in data]

    def _as_numbers(self, part: Tensor) -> Tensor:
        """A part of the data in the number type of the step; whole numbers are converted once."""
        if part.dtype == self.program.dtype:
            return part.contiguous()
        key = part.data_ptr(), part._version, part.shape
        if self._converted.get(key[0], (None,))[0] != key:
            most = 2 ** (24 if self.program.dtype == torch.float32 else 53)
            if part.dtype != torch.bool and part.numel() and int(part.abs().max()) > most:
                raise CannotError(f"data of {part.dtype} that are no numbers of {self.program.dtype}")
            self._converted[key[0]] = key, part.to(self.program.dtype).contiguous(), part
        return self._converted[key[0]][1]

    def _rates(self, lr: Tensor | None, steps: int) -> Tensor:
        """The rate of each parameter at each step that is taken."""
        groups = self.optimizer.param_groups
        if lr is None:
            lr = constant_rates(self.optimizer, steps)
        if lr.shape != (steps, len(groups)):
            raise ValueError(
                f"lr has shape {tuple(lr.shape)}; give (steps, groups) = ({steps}, {len(groups)})"
            )
        return lr.double()[:, self._groups].contiguous()

    def _call(
        self,
        data: list[Tensor],
        index: Tensor,
        kl_weight: Tensor,
        rates: Tensor,
        results: list[Tensor],
        bad_in_a_row: int,
    ) -> tuple[int, int]:
        """One call of the function: how many steps ran, and how many of them changed the parameters."""
        states = adam_states(self.optimizer, self.parameters)
        groups = [self.optimizer.param_groups[i] for i in self._groups]
        taken = torch.zeros((), dtype=torch.int64)
        threads, stream = self._pace.threads, self.generator.get_state()
        beta1, beta2 = groups[0]["betas"]
        numbers = {
            "steps": len(index),
            "threads": threads,
            "beta1": beta1,
            "beta2": beta2,
            "max_norm": self.max_norm,
            "bad_before": bad_in_a_row,
            "most_bad": self.most_bad,
        }
        tensors = {  # named, so that they live until the call has ended
            "index": index,
            "data": _addresses(data),
            "parameters": _addresses(self.parameters),
            "first_moments": _addresses([state["exp_avg"] for state in states]),
            "second_moments": _addresses([state["exp_avg_sq"] for state in states]),
            "constants": _addresses(self._constants),
            "noise": self._draw(len(index)),
            "kl_weight": kl_weight,
            "lr": rates,
            "eps": torch.tensor([float(group["eps"]) for group in groups], dtype=torch.float64),
            "steps_before": torch.tensor([float(state["step"]) for state in states], dtype=torch.float64),
            "taken": taken,
            "arena": self._arena,
            "packing": self._packing,
            "squares": self._squares,
            **dict(zip(("loss", "kl", "reconstruction", "norm", "bad"), results, strict=True)),
        }
        call = Call(**numbers, **{name: tensor.data_ptr() for name, tensor in tensors.items()})
        started = time.perf_counter()
        try:
            ran = int(self._library.run(ctypes.byref(call)))
            self._pace.note(threads, steps=ran, seconds=time.perf_counter() - started)
        finally:  # also if an interrupt waited for the call to end
            for state in states:
                state["step"] += int(taken)
        if ran < len(index):
            self.generator.set_state(stream)
            self._draw(ran)
        return ran, int(taken)

    def _draw(self, steps: int) -> Tensor:
        """Noise from torch's stream, each step's draws in the graph's order.

        torch fills 16 normal numbers at a time, so one draw equals many small ones only where every small one
        is a multiple of that.
        """
        parts = self.program.noise
        sizes = [part.size for part in parts]
        noise = torch.empty(steps, sum(sizes), dtype=self.program.dtype)
        if all(part.kind == "normal" and part.size % 16 == 0 for part in parts):
            return noise.normal_(generator=self.generator)
        for row in noise:
            for part, numbers in zip(parts, row.split(sizes), strict=True):
                if part.kind == "permutation":
                    torch.randperm(part.index, generator=self.generator)
                    continue
                fill = numbers.normal_ if part.kind == "normal" else numbers.uniform_
                fill(generator=self.generator)
        return noise


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)


def _groups(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[int]:
    """The optimizer's group of each parameter."""
    if type(optimizer) is not Adam:
        raise CannotError(
            f"the optimizer {type(optimizer).__name__}; native steps are those of torch.optim.Adam"
        )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise CannotError("an optimizer with hooks")
    group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for group in optimizer.param_groups:
        for option in ("weight_decay", "amsgrad", "maximize"):
            if group[option]:
                raise CannotError(f"Adam with {option}={group[option]}")
        if group["betas"] != optimizer.param_groups[0]["betas"] or any(map(torch.is_tensor, group["betas"])):
            raise CannotError("Adam with betas that are tensors or differ between groups")
    if any(id(parameter) not in group_of for parameter in parameters):
        raise CannotError("an optimizer that leaves out some of the parameters")
    return [group_of[id(parameter)] for parameter in parameters]
