"""What the ranks of a fit tell each other: numbers that are summed over them, and why one of them has failed.

A rank that fails says so in its next exchange in place of its numbers, so the others learn it at once and
from itself; one that dies without a word is found missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_vae.svi.parallel.launch import RankError, missing_ranks

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

SENTENCE_BYTES = 1024
PRIME = 16_777_213
"""Checksums below it are exact in float32, in which ranks exchange them."""


class Room(NamedTuple):
    """A flat tensor, and views of it."""

    flat: Tensor
    """For each rank whether it has failed, for each rank a number to compare, and the terms."""
    terms: list[Tensor]
    """Rows, loss, KL, reconstruction, and a gradient for each parameter."""


class Exchange:
    """The exchanges of one rank with the others. Each must be called by all of them, in the same order.

    Parameters
    ----------
    device
        Of this rank.
    store
        Where ranks can leave word when their exchange is broken; None if the group was not made here.
    """

    def __init__(self, device: torch.device, store: Store | None) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device, self._store = device, store
        # One shape at a time: a rank that fails must join the exchange that the others are in.
        self._buffer = torch.zeros(2 * self.size, dtype=torch.float64, device=device)
        self.terms: list[Tensor] = []

    def room_for(self, parameters: Sequence[Tensor]) -> Room:
        """What the terms of a step with these parameters need; nothing is exchanged."""
        dtype = torch.float32
        for parameter in parameters:
            dtype = torch.promote_types(dtype, parameter.dtype)
        head = 2 * self.size
        flat = torch.zeros(
            head + 4 + sum(p.numel() for p in parameters), dtype=dtype, device=parameters[0].device
        )
        terms, offset = [flat[head + i] for i in range(4)], head + 4
        for parameter in parameters:
            # in memory as the parameter is: fused optimizers walk through both together
            like = torch.empty_like(parameter, device="meta")
            place = flat[offset : offset + parameter.numel()]
            terms.append(place.as_strided(like.shape, like.stride()))
            offset += parameter.numel()
        return Room(flat, terms)

    def use(self, room: Room) -> None:
        """For all exchanges from here on; on every rank at the same place between two of them."""
        self._buffer, self.terms = room

    def sum(self, rows: int, outputs: Sequence[Tensor]) -> int:
        """Sum loss, KL, reconstruction and gradients, if they are given, into the terms after the first;
        returns the sum of the rows. Raises RankError here and in the other exchanges: if a rank has failed,
        or is lost."""
        self._buffer.zero_()
        self.terms[0].fill_(rows)
        if outputs:
            torch._foreach_copy_(self.terms[1:], list(outputs))
        return round(self._summed(also=1)[-1])

    def compare(self, number: int) -> list[float]:
        """The number of every rank; once there is room for a step it must be exact in float32."""
        self._buffer.zero_()
        self._buffer[self.size + self.rank] = float(number)
        return self._summed(also=0)[self.size :]

    def _summed(self, *, also: int) -> list[float]:
        """Sum the buffer over the ranks, and read its head and ``also`` numbers behind it."""
        try:
            dist.all_reduce(self._buffer)
            head: list[float] = self._buffer[: 2 * self.size + also].tolist()
            failed = _first_failed(head[: self.size])
            sentence = None if failed is None else self._sentence(failed)
        except RuntimeError as error:
            raise self._lost(error) from error
        if sentence is not None:
            raise RankError(f"rank {failed} failed, so this fit ends on all {self.size} ranks: {sentence}")
        return head

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give everybody the tensors of rank 0, as bytes, for there are dtypes that cannot be sent."""
        if not tensors:
            return
        parts = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors]
        flat = torch.cat(parts)
        try:
            dist.broadcast(flat, 0)
        except RuntimeError as error:
            raise self._lost(error) from error
        if self.rank != 0:
            for tensor, part in zip(tensors, flat.split([len(p) for p in parts]), strict=True):
                tensor.detach().copy_(part.clone().view(tensor.dtype).view(tensor.shape))

    def leave(self, error: BaseException | None) -> None:
        """The last exchange: all have done what they had to, or this rank has failed and says why."""
        if isinstance(error, RankError):
            return
        self._buffer.zero_()
        if error is None:
            self._summed(also=0)
            return
        self._buffer[self.rank] = 1.0
        with suppress(RuntimeError):  # where the exchange is broken, others know
            dist.all_reduce(self._buffer)
            self._sentence(
                _first_failed(self._buffer[: self.size].tolist()) or 0, f"{type(error).__name__}: {error}"
            )

    def _sentence(self, failed: int, own: str = "") -> str:
        """What a failed rank has to say."""
        text = own.encode()[:SENTENCE_BYTES] if failed == self.rank else b""
        place = torch.zeros(SENTENCE_BYTES, dtype=torch.uint8, device=self.device)
        place[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        dist.broadcast(place, failed)
        return bytes(place.tolist()).rstrip(b"\0").decode(errors="ignore")

    def _lost(self, error: RuntimeError) -> RankError:
        """Who does not answer any more."""
        reason = str(error).strip().split("\n")[0]
        if self._store is None:
            return RankError(
                f"rank {self.rank} has lost touch with another rank, and this fit ends: {reason}"
            )
        dist.destroy_process_group()  # so that whoever waits for this rank stops to wait and answers, too
        missing = missing_ranks(self._store, self.rank, self.size)
        who = f"rank {' and rank '.join(map(str, missing))}" if missing else "a rank that is alive again"
        return RankError(f"{who} did not answer, so this fit ends on all {self.size} ranks: {reason}")


def _first_failed(flags: Sequence[float]) -> int | None:
    return next((rank for rank, flag in enumerate(flags) if flag != 0), None)


def checksum(tensors: Sequence[Tensor]) -> int:
    """Of the bits of tensors, computed where they are."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for i, tensor in enumerate(tensors):
        bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()])
        total += (i + 1) * int(bits.sum(dtype=torch.int64))
    return total % PRIME
