"""The precision that scales and densities are computed in."""

from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half-precision tensors to float32; return every other tensor as it is.

    float16 ends at log σ = 11 and bfloat16 has three digits, too few to tell log σ from a neighbour one
    percent away, so a network may run in either while σ and log q are computed here.

    Parameters
    ----------
    x : Tensor
        Any shape, any floating dtype.

    Returns
    -------
    Tensor
        float32 where ``x`` was narrower, otherwise ``x`` itself.

    Examples
    --------
    >>> import torch
    >>> at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.float() if x.dtype.is_floating_point and x.dtype.itemsize < 4 else x
