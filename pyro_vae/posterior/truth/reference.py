"""Draw from the true posterior: exactly where the model knows it, by NUTS elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.arguments import brief, check_numbers, check_programs, require_count
from pyro_vae.naming import attributes
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.preparation import prepare_chosen
from pyro_vae.posterior.evaluation.sites import in_data_plate, site_dims
from pyro_vae.posterior.tree import library_attrs
from pyro_vae.posterior.truth.chains import convergence_of, latent_sites, nuts, require_convergence


@torch.inference_mode(mode=False)
def reference_posterior(
    model: Callable[..., Any],
    data: Any,
    method: Literal["auto", "exact", "nuts"] = "auto",
    draws: int = 1000,
    seed: int = 0,
    *,
    observations: Sequence[int] | None = None,
    chains: int = 4,
    warmup: int = 500,
    progress: bool = False,
) -> xr.DataTree:
    """Draws from the true posterior of each observation under a fixed model, to judge guides by.

    Parameters
    ----------
    model
        A Pyro model; latents of an observation lie in a plate over them at dim −1. It is not changed. Where
        observations share latents, the reference is of the joint posterior, by NUTS.
    data
        A tensor, an array, or a tuple of them.
    method
        ``exact`` asks the model, which must have ``posterior(*data)`` and ``log_evidence`` as
        :class:`~pyro_vae.models.PPCA` has. ``nuts`` runs Pyro's NUTS on the latents of all observations
        together. ``auto`` is exact where the model can, else NUTS.
    draws
        In each chain; exact draws are independent and come as one chain.
    seed
        Of all draws.
    observations
        Which to sample. NUTS takes seconds to minutes for ten observations, so give a few.
    chains, warmup
        Of NUTS, which starts each chain at a draw from the prior.
    progress
        Whether NUTS shows its own bar.

    Returns
    -------
    xr.DataTree
        Group ``posterior`` as in :func:`~pyro_vae.posterior.tree.from_pyro_svi`, with attribute ``method``.
        From NUTS also ``convergence``: R-hat and effective sample size (bulk) of every latent number, and
        the number of divergent transitions as attribute. Align it with a guide's tree before plotting both:
        :func:`~pyro_vae.posterior.tree.align_draws`.

    Raises
    ------
    ValueError
        If the model has no exact posterior and ``method`` is ``exact``; if the chains have not converged
        (R-hat above 1.01 or fewer than 100 effective draws per chain), because such a reference would judge
        wrongly.

    Examples
    --------
    >>> import torch
    >>> from pyro_vae.models import PPCA
    >>> model = PPCA(torch.tensor([[1.0], [1.0]]), torch.zeros(2), 1.0)
    >>> reference = reference_posterior(model, torch.ones(3, 2))
    >>> reference["posterior"].attrs["method"], dict(reference["posterior"].sizes)
    ('exact', {'chain': 1, 'draw': 1000, 'observation': 3, 'latent': 1})
    """
    if method not in ("auto", "exact", "nuts"):
        raise ValueError(f"method is {brief(method)}; give 'auto', 'exact' or 'nuts'")
    check_programs(model=model)
    require_count("draws", draws, 1)
    require_count("chains", chains, 2, " so that they can agree, and 4 is a good number")
    require_count("warmup", warmup, 1)
    check_numbers(seed=seed)
    knows = hasattr(model, "posterior") and hasattr(model, "log_evidence")
    if method == "exact" and not knows:
        raise ValueError(
            "the model has no posterior(x) and log_evidence(x), so it is not known exactly; "
            "give method='nuts'"
        )
    index, pair, joint = prepare_chosen(model, _Prior(model), data, observations)
    if knows and method != "nuts" and not joint:
        return draws_tree(_exact(pair, draws, seed), index, "exact", seed)
    values, divergences = nuts(pair, draws, warmup, chains, seed, progress=progress)
    shared = [
        name for name, site in latent_sites(pair).items() if joint and not in_data_plate(site, pair.plate)
    ]
    tree = draws_tree(values, index, "nuts", seed, shared)
    convergence = convergence_of(tree).assign_attrs(divergences=divergences)
    require_convergence(convergence, chains)
    tree["convergence"] = xr.DataTree(dataset=convergence)
    return tree


DRAWN_BY = {"exact": "the exact posterior", "nuts": "NUTS", "repair": "the step that is believed"}


class _Prior(nn.Module):
    """A guide that draws from the model's prior: it makes a pair of a model on its own."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> None:
        free = poutine.uncondition(self.model)
        poutine.block(free, hide_fn=lambda site: "was_observed" in (site["infer"] or {}))(*args)


def _exact(pair: Pair, draws: int, seed: int) -> dict[str, Tensor]:
    sites = latent_sites(pair)
    if len(sites) != 1:
        raise ValueError(
            f"the model has the latents {sorted(sites)}, but its posterior(x) is of one; give method='nuts'"
        )
    with pair.evaluation(seed):
        posterior: Any = pair.model
        return {name: posterior.posterior(*pair.tensors).sample((draws,))[None].cpu() for name in sites}


def draws_tree(
    values: dict[str, Tensor],
    index: NDArray[np.int64],
    method: str,
    seed: int,
    shared: Sequence[str] = (),
) -> xr.DataTree:
    """Draws by site, (chains, draws, observations, ...), as a tree with the group ``posterior``; those of
    ``shared`` sites have no observations."""
    import arviz_base

    shapes = {site: value.shape[2 if site in shared else 3 :] for site, value in values.items()}
    tree: xr.DataTree = arviz_base.from_dict(
        {"posterior": {site: value.numpy() for site, value in values.items()}},
        dims=site_dims(shapes, "latent", shared),
        coords={"observation": index} if len(shared) < len(values) else {},
        name="reference",
        sample_dims=["chain", "draw"],
        attrs={
            "/": {"model_name": "reference", "seed": seed},
            "posterior": library_attrs() | {"method": method},
        },
    )
    for site, array in tree["posterior"].data_vars.items():
        array.attrs |= attributes(f"{site}, drawn by {DRAWN_BY.get(method, method)}")
    return tree
