"""One fit on many devices: processes (ranks) that take every step together.

Each rank computes loss and gradients of its share of a batch, by whatever engine; one ``all_reduce`` of one
flat tensor sums them over the ranks; and every rank takes the same step from the same numbers. So the
parameters stay equal to the bit, a step that is not finite on one rank is skipped by all, and what a fit
notes is about the whole batch. ``DistributedDataParallel`` does the same by hooks in autograd, which a
captured graph does not run.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.arguments import brief
from pyro_vae.batches.batches import Batch
from pyro_vae.pairs.isolation import Program, modules_of
from pyro_vae.pairs.running import has_global_sites, in_observation_plate
from pyro_vae.storage.plain import pack, unpack
from pyro_vae.svi.objectives.elbo import Objective
from pyro_vae.svi.objectives.renyi import Renyi
from pyro_vae.svi.parallel.exchange import Exchange, checksum
from pyro_vae.svi.parallel.launch import RankError, join_group

Gradients = Callable[[Batch], Sequence[Tensor]]
"""Loss, KL, reconstruction and gradients of a batch."""


class OneProcess:
    """A fit that is on its own: the whole of every batch is its share."""

    rank, size, leads = 0, 1, True

    def begin(
        self,
        model: Program,
        guide: Program,
        objective: Objective,
        parameters: Mapping[str, Tensor],
        batch: Batch,
        *,
        rescaled: bool,
    ) -> None:
        """Make parameters and buffers what they are on rank 0.

        ``rescaled`` says that a batch's totals are about the full data (a subsampled plate), so that those of
        the ranks are averaged and not summed. Raises ValueError if the objective cannot be computed in
        shares; RankError if the ranks have made different pairs, or one has failed."""

    def sharing(self) -> AbstractContextManager[object]:
        """What must hold while the gradients of a share are computed or captured."""
        return nullcontext()

    def same_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """What rank 0 has read from a checkpoint, for all."""
        return state

    def set_stream(self, seed: int, step: int) -> None:
        """Set the random stream to where this rank's is before a step; that of one process just goes on."""

    def total(self, gradients: Gradients, batch: Batch) -> Sequence[Tensor]:
        """Loss, KL, reconstruction and gradients of the whole batch, of which ``batch`` is our share."""
        return gradients(batch)

    def observations(self, count: int) -> int:
        """What the totals of the last step are about, where one process alone would count ``count``."""
        return count

    def agree(self, validation: float) -> float:
        """After an epoch: the validation loss and the buffers of rank 0, and whether parameters are equal.
        Raises RankError if they are not: a callback, a hook or an optimizer that draws has changed them on
        one rank."""
        return validation


class Ranks(OneProcess):
    """The processes of one fit, seen from one of them.

    Parameters
    ----------
    exchange
        With the other ranks.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.rank, self.size, self.device = exchange.rank, exchange.size, exchange.device
        self.leads = self.rank == 0
        self._exchange = exchange
        self._seed = self._step = self._rows = 0
        self._rescaled = False
        self._plates: PlateScale | None = None
        self._parameters: list[Tensor] = []
        self._buffers: list[Tensor] = []

    def begin(
        self,
        model: Program,
        guide: Program,
        objective: Objective,
        parameters: Mapping[str, Tensor],
        batch: Batch,
        *,
        rescaled: bool,
    ) -> None:
        self._rescaled = rescaled
        self._parameters = list(parameters.values())
        self._buffers = [buffer for module in modules_of(model, guide) for buffer in module.buffers()]
        if has_global_sites(model, guide, batch):
            if isinstance(objective, Renyi):
                raise ValueError(
                    f"objective is {brief(objective)}, and this pair has latents outside of the observation "
                    "plate, which make one importance weight of a whole batch: ranks cannot compute it in "
                    "shares; give ELBO() or distributed=False"
                )
            if not rescaled:
                self._plates = PlateScale(self._parameters[0])
        structure = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in parameters.items()]
        room = self._exchange.room_for(self._parameters)
        sums = self._exchange.compare(zlib.crc32("\n".join(structure).encode()))
        self._complain(sums, "has made a pair with other parameters than rank 0: make the same on every rank")
        self._exchange.use(room)
        self._exchange.broadcast([*self._parameters, *self._buffers])

    def sharing(self) -> AbstractContextManager[object]:
        return nullcontext() if self._plates is None else self._plates

    def same_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        content = pack(state, "the state") if self.leads and state is not None else b""
        length = int(self._exchange.compare(len(content))[0])
        if not length:
            return None
        place = torch.zeros(length, dtype=torch.uint8, device=self.device)
        if self.leads:
            place.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self._exchange.broadcast([place])
        return state if self.leads else dict(unpack(place.cpu().numpy().tobytes()))

    def set_stream(self, seed: int, step: int) -> None:
        """The stream of a rank is a function of seed, step and rank, so a fit can go on with other ranks, and
        with as many to the same bits."""
        self._seed = seed
        self._set_stream(step)

    def _set_stream(self, step: int) -> None:
        self._step = step
        seed = _mixed(_mixed(_mixed(self._seed) + step) + self.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def total(self, gradients: Gradients, batch: Batch) -> Sequence[Tensor]:
        """Loss, KL, reconstruction and gradients of the whole batch, of which ``batch`` is this rank's share.

        A total over the rows is the sum of the ranks'; one about the full data is their mean, weighted by the
        rows. Where only a part of it is in the observation plate, that part is scaled up to the whole batch
        first, and the mean is taken then. What is returned is overwritten by the next call.
        """
        rows = len(batch[0])
        if self._plates is not None:
            self._plates.factor.fill_(self._exchange.sum(rows, []) / max(rows, 1))
        outputs = self._of_share(gradients, batch) if rows else []
        averaged = self._rescaled or self._plates is not None
        if averaged:
            outputs = torch._foreach_mul(list(outputs), float(rows)) if outputs else []
        self._rows = self._exchange.sum(rows, outputs)
        terms = self._exchange.terms
        if averaged:
            torch._foreach_div_(terms[1:], float(self._rows))
        self._set_stream(self._step + 1)
        summed = zip(terms[4:], self._parameters, strict=True)
        return [*terms[1:4], *(term.to(parameter.dtype) for term, parameter in summed)]

    def _of_share(self, gradients: Gradients, batch: Batch) -> Sequence[Tensor]:
        try:
            with self.sharing():
                return gradients(batch)
        finally:
            if self._plates is not None:
                self._plates.factor.fill_(1.0)

    def observations(self, count: int) -> int:
        return count if self._rescaled else self._rows

    def agree(self, validation: float) -> float:
        sums = self._exchange.compare(checksum(self._parameters))
        self._complain(
            sums,
            "has other parameters than rank 0: a callback, a hook or an optimizer with noise of its own has "
            "changed them on one rank, or the machines differ",
        )
        value = torch.tensor([validation], dtype=torch.float64, device=self.device)
        self._exchange.broadcast([value, *self._buffers])
        return float(value)

    def _complain(self, sums: Sequence[float], sentence: str) -> None:
        other = next((rank for rank, value in enumerate(sums) if value != sums[0]), None)
        if other is not None:
            raise RankError(f"rank {other} {sentence}")


class PlateScale(Messenger):
    """Multiplies log densities in the observation plate by ``factor``: a tensor, so captured graphs see it
    change.

    The loss of a pair with global latents is KL(global) + Σ over rows. A share of the rows has the whole of
    the first term and a part of the second, so shares neither add up nor average to the whole; with the
    second scaled up to the batch they average.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
    >>> plates = PlateScale(torch.zeros(()))
    >>> _ = plates.factor.fill_(3.0)
    >>> with plates:
    ...     trace = pyro.poutine.trace(model).get_trace(torch.zeros(2))
    >>> trace.nodes["mean"]["scale"], float(trace.nodes["x"]["scale"])
    (1.0, 3.0)
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.factor = torch.ones((), dtype=like.dtype, device=like.device)

    def _pyro_sample(self, msg: Any) -> None:
        if in_observation_plate(msg):
            msg["scale"] = msg["scale"] * self.factor


@contextmanager
def joined(distributed: bool, device: torch.device) -> Iterator[OneProcess]:
    """The ranks of a fit, for this block: those of an initialized process group, or of the environment that
    ``torchrun`` makes. Raises ValueError if there is neither, or the device is one that ranks cannot use;
    RankError if another rank fails."""
    if not distributed:
        yield OneProcess()
        return
    if not dist.is_available():
        raise ValueError("distributed is True, and this build of torch is without torch.distributed")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"distributed is True, and ranks exchange on 'cpu' or 'cuda', not on {device}")
    own = not dist.is_initialized()
    store = join_group(device) if own else None
    try:
        exchange = Exchange(device, store)
        try:
            yield Ranks(exchange)
        except BaseException as error:
            exchange.leave(error)
            raise
        exchange.leave(None)
    finally:
        if own and dist.is_initialized():
            dist.destroy_process_group()


def _mixed(number: int) -> int:
    """Distinct numbers for distinct numbers, with nothing left of their order (Steele, Lea and Flood, 2014,
    Fast Splittable Pseudorandom Number Generators)."""
    mask = 0xFFFF_FFFF_FFFF_FFFF
    number = (number + 0x9E37_79B9_7F4A_7C15) & mask
    number = ((number ^ (number >> 30)) * 0xBF58_476D_1CE4_E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D0_49BB_1331_11EB) & mask
    return number ^ (number >> 31)
