"""Find what ``torchrun`` has started: how its processes know it, where they meet, and words between them."""

from __future__ import annotations

import functools
import itertools
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE = timedelta(minutes=10)
"""A rank that lets the others wait for longer has failed. A checkpoint, the validation loss and a compilation
must fit into it."""

GRACE = timedelta(seconds=5)
"""For a rank that is alive to say so, when another is lost."""

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_groups = itertools.count()
"""Process groups that this process has made; ranks make them together."""


class RankError(RuntimeError):
    """Another rank of this fit has failed, so it has ended on all of them; the message names the rank."""


def local_device(device: torch.device) -> torch.device:
    """The device of this rank: of several GPUs the one with its number on this machine."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def join_group(device: torch.device) -> Store:
    """Make the process group that the environment tells of; returns a store of the group. Raises ValueError
    if it tells of none, or of more ranks on this machine than it has GPUs: NCCL needs one for each."""
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise ValueError(
            f"distributed is True, and there is no process group and no {missing[0]} in the environment; "
            "start with `torchrun --nproc-per-node=N`, or call torch.distributed.init_process_group first"
        )
    here, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device.type == "cuda" and here > cards:
        raise ValueError(
            f"LOCAL_WORLD_SIZE is {here}, and this machine has {cards} GPU{'s' * (cards > 1)}; "
            f'start with `torchrun --nproc-per-node={cards}`, or give device="cpu"'
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    # the store outlives a group, and what an earlier one has left there would confuse the next
    found, rank, size = _meeting_place()
    store = PrefixStore(f"pyro_vae/{next(_groups)}", found)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return store


@functools.cache
def _meeting_place() -> tuple[Store, int, int]:
    """The store where ranks find each other, our rank and their number. One for the life of the process: a
    second one at the same address could be taken for the first."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    return store, rank, size


def tell(turn: int, word: str) -> None:
    """Say a word to the other ranks of this launch; each turn has its own."""
    _meeting_place()[0].set(f"pyro_vae/said/{turn}", word)


def hear(turn: int) -> str:
    """Wait for the word of a turn. Raises RankError if none comes."""
    key = f"pyro_vae/said/{turn}"
    store, rank, _ = _meeting_place()
    try:
        store.wait([key], PATIENCE)
        return str(store.get(key).decode())
    except RuntimeError as error:
        raise RankError(f"rank {rank} has not heard from rank 0 for {PATIENCE}: {error}") from error


def is_launched() -> bool:
    """Whether this is one of several processes that ``torchrun``, or something like it, has started."""
    return all(name in os.environ for name in ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


def is_follower() -> bool:
    """Whether this is another of them than the first."""
    return is_launched() and int(os.environ["RANK"]) > 0


def missing_ranks(store: Store, rank: int, size: int) -> list[int]:
    """The ranks that do not answer; the store is rank 0's where torchrun does not keep it."""
    missing = []
    try:
        store.set(f"alive/{rank}", "")
    except RuntimeError:
        return [0]
    for other in range(size):
        try:
            store.wait([f"alive/{other}"], GRACE)
        except RuntimeError:
            missing.append(other)
    return missing
