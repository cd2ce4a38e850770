"""Which noise a draw was made of."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Noise(NamedTuple):
    """The noise of a draw."""

    eps: Tensor
    """Standard normal, of the shape of the draw."""
    pathwise: bool
    """Whether the draw carries the gradient of the parameters."""


class NoiseMemory:
    """The noise of every living draw of a distribution.

    A draw is known by identity, with the parameters that made it: neither a copy nor a view of it is that
    draw, nor is the draw itself once it or a parameter has been replaced or changed in place. Draws are
    referred to weakly: the memory keeps none alive and forgets the noise of a draw with the draw. A copy or a
    pickle of it is empty.

    Inside ``torch.compile``, which cannot follow weak references, and in inference mode, where changes in
    place leave no trace, it remembers nothing.

    Examples
    --------
    >>> import torch
    >>> loc, eps = torch.zeros(2), torch.randn(2)
    >>> memory = NoiseMemory()
    >>> draw = loc + eps
    >>> memory.remember(draw, eps, (loc,))
    >>> memory.recall(draw, (loc,)).eps is eps
    True
    >>> memory.recall(draw.clone(), (loc,)) is None
    True
    """

    def __init__(self) -> None:
        self._records: WeakTensorKeyDictionary | None = None

    def remember(self, draw: Tensor, eps: Tensor, parameters: tuple[Tensor, ...]) -> None:
        """Keep the noise of a draw that was made with these parameters."""
        if torch.compiler.is_dynamo_compiling() or draw.is_inference():
            return
        if self._records is None:
            self._records = WeakTensorKeyDictionary()
        self._records[draw] = Noise(eps, draw.requires_grad), parameters, _versions(draw, *parameters)

    def recall(self, value: Tensor, parameters: tuple[Tensor, ...]) -> Noise | None:
        """The noise of ``value``, if it is a draw with these parameters and nothing has changed since."""
        if torch.compiler.is_dynamo_compiling() or self._records is None or value not in self._records:
            return None
        noise: Noise
        noise, made_with, versions = self._records[value]
        same = all(ours is theirs for ours, theirs in zip(made_with, parameters, strict=True))
        return noise if same and versions == _versions(value, *parameters) else None

    def __reduce__(self) -> tuple[type["NoiseMemory"], tuple[()]]:
        return NoiseMemory, ()


def _versions(*tensors: Tensor) -> list[int | None]:
    """The counters of changes in place, which inference tensors do not have."""
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]
