"""What makes two fits the same fit, so that one may go on where the other stopped."""

import hashlib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vae.storage.plain import tensor_bytes
from pyro_vae.svi.batches import Batches
from pyro_vae.svi.isolation import modules_of
from pyro_vae.svi.loop import Loop

__all__ = ["difference", "fingerprint", "identity"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
ROWS_AT_ONCE = 65_536


def identity(loop: Loop, batches: Batches, validation: tuple[Tensor, ...] | None, **options: Any) -> Any:
    """What a fit is, in words and numbers: its arguments, structure and data.

    How long it runs is not part of it: a fit of 100 epochs may go on to 200.
    """
    groups = loop.optimizer.state_dict()["param_groups"]
    return {
        **{name: _told(value) for name, value in options.items()},
        "objective": _told(loop.objective),
        "max_norm": loop.max_norm,
        "patience": None if loop.stopping is None else loop.stopping.patience,
        "optimizer": f"{type(loop.optimizer).__name__} {_told(groups)}",
        "schedule": _told(
            None if loop.schedule is None else (type(loop.schedule).__name__, loop.schedule.state_dict())
        ),
        "modules": [
            f"{type(module).__name__} {path}".strip()
            for root in modules_of(loop.model, loop.guide)
            for path, module in root.named_modules()
        ],
        "parameters and buffers": [
            f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in loop.tensors().items()
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
            verb = "were" if name.endswith(("s", "data")) else "was"
            return f"its {name} {verb} {old}, and here {'they are' if verb == 'were' else 'it is'} {new}"
    return None


def fingerprint(batches: Batches) -> str:
    """Of data in memory a checksum; what a loader will give is not known beforehand."""
    tensors = getattr(batches, "tensors", None)
    return "from a loader" if tensors is None else f"checksum {_digest(tensors)}"


def _digest(tensors: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        for rows in tensor.split(ROWS_AT_ONCE):
            digest.update(tensor_bytes(rows.cpu()))
    return digest.hexdigest()[:16]


def _told(value: Any) -> str:
    """A value in words, without where it lies in memory."""
    return ADDRESS.sub("", repr(value))
