"""Write nested plain values and tensors as one safetensors file; refuse what cannot be written as data."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEY = "pyro-vae"
SEAL = "sha256"


def pack(value: Any, name: str) -> bytes:
    """The bytes of a safetensors file that holds ``value``: None, numbers, text, tensors, and lists, tuples
    and dictionaries of these. Structure and numbers are JSON in its header; ``unpack`` gives back equal bits.
    Raises TypeError if there is anything else in it, by its place.

    Parameters
    ----------
    value
        What to write.
    name
        What to call it in a message.

    Examples
    --------
    >>> unpack(pack({"rates": (0.1, 2), "moments": [torch.ones(2)]}, "state"))
    {'rates': (0.1, 2), 'moments': [tensor([1., 1.])]}
    >>> pack({"rate": print}, "state")
    Traceback (most recent call last):
        ...
    TypeError: state['rate'] is a builtin_function_or_method, which cannot be written as data
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(value, tensors, name))
    return save(tensors, metadata={KEY: text, SEAL: _seal(text, tensors)})


def unpack(content: bytes) -> Any:
    """What :func:`pack` was given. Raises ValueError if these are not bytes of its making."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        text = metadata[KEY]
        if metadata[SEAL] != _seal(text, tensors):
            raise ValueError("its checksum is not the one that was noted when it was written")
        return _decoded(json.loads(text), tensors)
    except (SafetensorError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(str(error).split("\n")[0] or type(error).__name__) from error


def _encoded(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON: scalars and lists as they are, everything else as an object of one entry that names its kind."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if torch.is_tensor(value):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, list | tuple):
        items = [_encoded(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = [
            [_encoded(key, tensors, where), _encoded(item, tensors, f"{where}[{key!r}]")]
            for key, item in value.items()
        ]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise TypeError(f"{where} is a {type(value).__name__}, which cannot be written as data")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decoded(item, tensors) for item in content)
    pairs = {_decoded(key, tensors): _decoded(item, tensors) for key, item in content}
    return {"dict": dict, "counter": Counter}[kind](pairs)


def _seal(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor on the CPU, whatever its type."""
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
