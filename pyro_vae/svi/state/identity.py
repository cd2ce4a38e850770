"""What makes two fits the same fit, so that one may go on where the other stopped."""

import hashlib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vae.batches.batches import ArrayBatches, Batches, MappedBatches, Rows
from pyro_vae.batches.files import row_chunks
from pyro_vae.pairs.isolation import modules_of
from pyro_vae.storage.plain import tensor_bytes
from pyro_vae.svi.loop import Loop

__all__ = ["difference", "fingerprint", "identity_of"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identity_of(loop: Loop, batches: Batches, validation: tuple[Tensor, ...] | None, **options: Any) -> Any:
    """What a fit is, in words and numbers: its arguments, structure and data.

    How long it runs is not part of it: a fit of 100 epochs may go on to 200.
    """
    schedule = loop.schedule
    return {
        **{name: _told(value) for name, value in options.items()},
        "objective": _told(loop.objective),
        "max_norm": loop.max_norm,
        "patience": None if loop.stopping is None else loop.stopping.patience,
        "modules": [
            f"{type(module).__name__} {path}".strip()
            for root in modules_of(loop.model, loop.guide)
            for path, module in root.named_modules()
        ],
        "parameters and buffers": [
            f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in loop.tensors().items()
        ],
        "optimizer": type(loop.optimizer).__name__,
        "schedule": None if schedule is None else type(schedule).__name__,
        "settings of the schedule": [] if schedule is None else _entries(schedule.state_dict()),
        "settings of the optimizer": [
            f"{entry} of group {i}"
            for i, group in enumerate(loop.optimizer.state_dict()["param_groups"])
            for entry in _entries(group)
        ],
        "data": f"{batches.observations} observations in {len(batches)} batches, {fingerprint(batches)}",
        "validation data": None if validation is None else _digest(validation),
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two identities differ, as a sentence; None if there is none."""
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, list) and isinstance(new, list):
            first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
            i = min(len(old), len(new)) if first is None else first
            old, new = (items[i] if i < len(items) else "missing" for items in (old, new))
        if old != new:
            old, new = (textwrap.shorten(str(value), 120) for value in (old, new))
            if isinstance(now.get(name, before.get(name)), list) or name.endswith("data"):
                return f"its {name} were {old}, and here they are {new}"
            return f"its {name} was {old}, and here it is {new}"
    return None


def fingerprint(batches: Batches) -> str:
    """Of tensors and memory-mapped arrays a checksum; what a loader will give is not known beforehand."""
    if isinstance(batches, ArrayBatches):
        return f"checksum {_digest(batches.tensors)}"
    return f"checksum {_digest(batches.rows)}" if isinstance(batches, MappedBatches) else "from a loader"


def _digest(rows: tuple[Rows, ...]) -> str:
    digest = hashlib.sha256()
    for part in rows:
        digest.update(f"{tuple(part.shape)} {part[:1].dtype}".encode())
        for chunk in row_chunks(part):
            digest.update(tensor_bytes(part[chunk].cpu()))
    return digest.hexdigest()[:16]


def _entries(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_told(value)}" for name, value in settings.items()]


def _told(value: Any) -> str:
    """A value in words, without where it lies in memory."""
    return ADDRESS.sub("", repr(value))
