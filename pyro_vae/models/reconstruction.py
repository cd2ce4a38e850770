"""What a model shows: reconstructions of observations, and walks through its latent space."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Protocol

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.arguments import (
    brief,
    check_programs,
    kind,
    positive_integer,
    positive_number,
    require_finite,
    require_tensor,
    without_trace,
)
from pyro_vae.arrays import as_tensor, subsets
from pyro_vae.devices import forked_streams


class _Decodes(Protocol):
    """A model with p(x|z) as a method: VAE, HierarchicalVAE and PPCA are such."""

    def decode(self, z: Tensor, /) -> TorchDistribution: ...


@torch.no_grad()
def reconstruct(
    model: Callable[..., Any], guide: Callable[..., Any], *data: Any, draws: int = 1, site: str = "x"
) -> Tensor:
    r"""The mean of each observation under the guide's posterior.

    .. math:: \hat x = \frac1S \sum_s \mathrm{E}[x \mid z_s], \qquad z_s \sim q(z \mid x)

    Parameters
    ----------
    model, guide
        Any Pyro pair; both are called with ``*data``.
    data
        The observations, and whatever else the model takes: tensors, arrays, data frames; they are moved to
        the device of the pair, and become its floating point where it does not take integers.
    draws
        S, the number of posterior draws to average over.
    site
        The observed site to reconstruct.

    Returns
    -------
    Tensor
        Of the shape of the observations, on the device of the pair.

    Raises
    ------
    TypeError
        If the observations are no array.
    ValueError
        If there are none or they are not finite, if the model has no such site, or if its distribution has no
        mean (Categorical).

    Examples
    --------
    >>> import pyro
    >>> from pyro_vae.models import PPCA
    >>> model = PPCA(torch.tensor([[2.0], [0.0]]), torch.zeros(2), 1.0)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", model.posterior(x))
    >>> reconstruct(model, guide, torch.tensor([[5.0, 3.0]]), draws=1000).round(decimals=1)
    tensor([[4., 0.]])
    """
    check_programs(model=model, guide=guide)
    positive_integer("draws", draws)
    leaf = _first_parameter(guide, model)
    placed = _placed(data, leaf)
    whole = [i for i, part in enumerate(placed) if isinstance(part, Tensor) and not part.is_floating_point()]
    dtype = torch.get_default_dtype() if leaf is None else leaf.dtype
    for floats in subsets(whole) if whole else ():
        taken = tuple(part.to(dtype) if i in floats else part for i, part in enumerate(placed))
        with suppress(RuntimeError), forked_streams():
            _draw(model, guide, taken, leaf)
            placed = taken
            break
    total: Tensor | float = 0.0
    for _ in range(draws):
        nodes = _draw(model, guide, placed, leaf)
        if site not in nodes:
            sites = [name for name, node in nodes.items() if node["type"] == "sample"]
            raise ValueError(
                f"site is {brief(site)}; give one of the model's sample sites, {', '.join(sites)}"
            )
        observed: Any = nodes[site]["fn"]
        total = total + observed.mean
    assert isinstance(total, Tensor)
    if total.isnan().any():
        raise ValueError(
            f"site is {brief(site)}, whose distribution has no mean ({observed}); give one that has"
        )
    return total / draws


def _placed(data: tuple[Any, ...], leaf: Tensor | None) -> tuple[Any, ...]:
    """Arrays as tensors where the pair is; numbers, None and text that a program takes beside them as they
    are."""
    if not data:
        raise TypeError("data is empty; give the observations")
    device = torch.device("cpu") if leaf is None else leaf.device
    dtype = torch.get_default_dtype() if leaf is None else leaf.dtype
    placed: list[Any] = []
    for i, part in enumerate(data):
        name = "data" if len(data) == 1 else f"data[{i}]"
        if i > 0 and isinstance(part, bool | int | float | str | None):
            placed.append(part)
            continue
        tensor = part if leaf is None and isinstance(part, Tensor) else as_tensor(part, name, device, dtype)
        require_finite(name, tensor)
        if tensor.dim() == 0 or len(tensor) == 0:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; give at least one observation")
        placed.append(tensor)
    return tuple(placed)


def _draw(
    model: Callable[..., Any], guide: Callable[..., Any], data: tuple[Any, ...], leaf: Tensor | None
) -> Any:
    """The model's sites at a draw of the guide."""
    try:
        with nullcontext() if leaf is None else leaf.device:  # where torch.zeros(8) of a program is made
            latents = poutine.trace(guide).get_trace(*data)
            return poutine.trace(poutine.replay(model, latents)).get_trace(*data).nodes
    except (ValueError, TypeError, RuntimeError) as error:
        if str(error) == without_trace(error):
            raise
        raise type(error)(without_trace(error)) from error


@torch.no_grad()
def traverse(
    model: _Decodes, origin: Tensor, *, dims: Sequence[int] | None = None, span: float = 3.0, steps: int = 7
) -> Tensor:
    """Means of x on walks from one latent along each axis in turn, for a figure.

    Parameters
    ----------
    model
        A `VAE`, or anything with its ``decode``.
    origin
        A latent (latent_dim,), for example zeros or the posterior mean of an observation.
    dims
        Which latent dimensions to walk along; all by default.
    span
        A walk goes from −span to +span around the origin.
    steps
        Points on each walk.

    Returns
    -------
    Tensor
        (len(dims), steps, ...), one mean of x per point.

    Examples
    --------
    >>> from pyro_vae.models import VAE, MLPDecoder
    >>> model = VAE(MLPDecoder(2, [16], 64), 2, "bernoulli")
    >>> traverse(model, torch.zeros(2), steps=5).shape
    torch.Size([2, 5, 64])
    """
    if not hasattr(model, "decode"):
        raise TypeError(f"model is {kind(model)} without decode(z); give a VAE, or define decode")
    require_tensor("origin", origin, floating=True)
    if origin.dim() != 1:
        raise ValueError(f"origin has shape {tuple(origin.shape)}; give one latent, (latent_dim,)")
    if dims is not None and not all(dim in range(len(origin)) for dim in dims):
        raise ValueError(f"dims is {list(dims)!r}; give latent dimensions in 0…{len(origin) - 1}")
    leaf = _first_parameter(model)
    origin = origin if leaf is None else origin.to(leaf.device)
    positive_integer("steps", steps)
    positive_number("span", span)
    axes = torch.eye(len(origin), dtype=origin.dtype, device=origin.device)
    axes = axes if dims is None else axes[list(dims)]
    offsets = torch.linspace(-span, span, steps, dtype=origin.dtype, device=origin.device)
    mean: Tensor = model.decode(origin + axes[:, None, :] * offsets[:, None]).mean
    return mean


def _first_parameter(*programs: Any) -> Tensor | None:
    """Of these programs: a fit may have put them on another device than data."""
    modules = [getattr(program, "__self__", program) for program in programs]
    parameters = (p for module in modules if isinstance(module, nn.Module) for p in module.parameters())
    return next((parameter for parameter in parameters if parameter.is_floating_point()), None)
