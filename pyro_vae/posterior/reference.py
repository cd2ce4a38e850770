"""What the posterior really is, and how far a guide is from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyro
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_sample, init_to_value
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.arguments import check_numbers, check_programs, require_count
from pyro_vae.devices import making_tensors_on
from pyro_vae.pairs.isolation import owner
from pyro_vae.posterior.arguments import require_tree
from pyro_vae.posterior.drawing import (
    Pair,
    SharedLatentError,
    coordinate_names,
    in_data_plate,
    sample_sites,
)
from pyro_vae.posterior.joint import joint_dims
from pyro_vae.posterior.preparation import prepare, prepare_joint, select
from pyro_vae.posterior.tree import library_attrs, site_dims

Array = NDArray[np.float64]

LARGEST_RHAT = 1.01
SMALLEST_ESS_PER_CHAIN = 100
"""Of a reference that is fit to judge others by (Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021)."""


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
        raise ValueError(f"method is {method!r}; give 'auto', 'exact' or 'nuts'")
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
    index, subset = select(data, observations)
    try:
        pair = prepare(model, _Prior(model), subset)
    except SharedLatentError as error:
        if observations is not None:
            raise ValueError(
                "observations names some of the data, but all of them share latents; leave it out"
            ) from error
        return _joint_nuts(prepare_joint(model, _Prior(model), data), draws, warmup, chains, seed, progress)
    if knows and method != "nuts":
        return posterior_tree(_exact(pair, draws, seed), index, "exact", seed)
    values, divergences = nuts(pair, draws, warmup, chains, seed, progress=progress)
    tree = posterior_tree(values, index, "nuts", seed)
    convergence = convergence_of(tree)
    convergence.attrs["divergences"] = divergences
    _refuse(convergence, chains)
    tree["convergence"] = xr.DataTree(dataset=convergence)
    return tree


def posterior_error(tree: xr.DataTree, reference: xr.DataTree) -> xr.Dataset:
    """How far the draws of a guide are from those of a reference, for each observation and latent number.

    Parameters
    ----------
    tree
        From :func:`~pyro_vae.posterior.tree.from_pyro_svi`.
    reference
        From :func:`reference_posterior` with the same model. Observations are matched by their labels.

    Returns
    -------
    xr.Dataset
        Over (observation, latent), in units of the reference's standard deviation: ``mean_error``, the
        absolute difference of the means; ``sd_ratio``, the guide's standard deviation (below 1: too narrow);
        ``wasserstein``, the Wasserstein-1 distance of the marginals.

    Raises
    ------
    ValueError
        If the trees have no observation or latent in common.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> def tree(scale):
    ...     import arviz_base
    ...     draws = rng.normal(0, scale, size=(1, 4000, 1))
    ...     return arviz_base.from_dict({"posterior": {"z": draws}}, dims={"z": ["observation"]})
    >>> posterior_error(tree(0.5), tree(1.0))["sd_ratio"].round(1).values
    array([[0.5]])
    """
    guide, truth = matched_draws(tree, reference)
    scale = truth.std("sample", ddof=1)
    quantiles = [_quantiles(each) for each in (guide, truth)]
    return xr.Dataset(
        {
            "mean_error": abs(guide.mean("sample") - truth.mean("sample")) / scale,
            "sd_ratio": guide.std("sample", ddof=1) / scale,
            "wasserstein": abs(quantiles[0] - quantiles[1]).mean("quantile") / scale,
        },
        attrs={"method": reference["posterior"].attrs.get("method", "unknown")},
    )


def _joint_nuts(pair: Pair, draws: int, warmup: int, chains: int, seed: int, progress: bool) -> xr.DataTree:
    """NUTS on latents that observations share, and on those of each beside them."""
    import arviz_base

    values, divergences = nuts(pair, draws, warmup, chains, seed, progress=progress)
    local = {name: in_data_plate(site, pair.plate) for name, site in latent_sites(pair).items()}
    dims = joint_dims(
        {name: (local[name], tuple(value.shape[2:])) for name, value in values.items()}, "latent"
    )
    tree: xr.DataTree = arviz_base.from_dict(
        {"posterior": {site: value.numpy() for site, value in values.items()}},
        dims=dims,
        name="reference",
        sample_dims=["chain", "draw"],
        attrs={
            "/": {"model_name": "reference", "seed": seed},
            "posterior": library_attrs() | {"method": "nuts"},
        },
    )
    convergence = convergence_of(tree)
    convergence.attrs["divergences"] = divergences
    _refuse(convergence, chains)
    tree["convergence"] = xr.DataTree(dataset=convergence)
    return tree


def matched_draws(tree: xr.DataTree, reference: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """The draws of both for the observations and latents that they share."""
    require_tree("tree", tree)
    require_tree("reference", reference)
    guide, truth = (_flat(each["posterior"].to_dataset()) for each in (tree, reference))
    guide, truth = xr.align(guide, truth, join="inner", exclude=["sample"])
    if guide.sizes.get("observation") == 0 or guide.sizes["latent"] == 0:
        raise ValueError(
            "the tree and the reference have no observation and latent in common; draw both for the same "
            "observations"
        )
    return guide, truth


def nuts(
    pair: Pair,
    draws: int,
    warmup: int,
    chains: int,
    seed: int,
    *,
    start: Sequence[Mapping[str, Tensor]] | None = None,
    progress: bool = False,
) -> tuple[dict[str, Tensor], int]:
    """NUTS on all observations: draws by site, (chains, draws, observations, ...), and divergences."""
    module = owner(pair.model)
    if module is not None:
        module.requires_grad_(False)  # a copy; only the latents move
    device = pair.args[0].device
    by_chain, divergences = [], 0
    for chain in range(chains):
        with (
            pair.evaluation(seed, chain),
            torch.enable_grad(),
            pyro.get_param_store().scope(pair.model_state),
        ):
            init = init_to_sample() if start is None else init_to_value(values=_on(device, start[chain]))
            kernel = NUTS(_Unscaled()(pair.model), init_strategy=init)
            sampler = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=not progress)
            with making_tensors_on(device):
                sampler.run(*pair.tensors)
            by_chain.append(sampler.get_samples())
            divergences += sum(len(found) for found in sampler.diagnostics()["divergences"].values())
    sites = latent_sites(pair)
    values = {}
    for name, site in sites.items():
        value = torch.stack([chain[name] for chain in by_chain]).cpu()
        inside = in_data_plate(site, pair.plate)
        axis = value.dim() - site["fn"].event_dim + pair.plate.dim
        values[name] = value.movedim(axis, 2) if inside else value
    return values, divergences


def _on(device: torch.device, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {site: value.to(device) for site, value in values.items()}


class _Prior(nn.Module):
    """A guide that draws from the model's prior: it makes a pair of a model on its own."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> None:
        free = poutine.uncondition(self.model)
        poutine.block(free, hide_fn=lambda site: "was_observed" in (site["infer"] or {}))(*args)


class _Unscaled(Messenger):
    """Takes subsampling and annealing off: they would temper the posterior."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def latent_sites(pair: Pair) -> dict[str, Any]:
    """The model's latents, as Pyro traced them."""
    with pair.evaluation(0):
        trace = pair.run_model(pair.tensors, 1)
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def _exact(pair: Pair, draws: int, seed: int) -> dict[str, Tensor]:
    sites = latent_sites(pair)
    if len(sites) != 1:
        raise ValueError(
            f"the model has the latents {sorted(sites)}, but its posterior(x) is of one; give method='nuts'"
        )
    with pair.evaluation(seed):
        posterior: Any = pair.model
        return {name: posterior.posterior(*pair.tensors).sample((draws,))[None].cpu() for name in sites}


def posterior_tree(
    values: dict[str, Tensor], index: NDArray[np.int64], method: str, seed: int
) -> xr.DataTree:
    """Draws by site, (chains, draws, observations, ...), as a tree with the group ``posterior``."""
    import arviz_base

    tree: xr.DataTree = arviz_base.from_dict(
        {"posterior": {site: value.numpy() for site, value in values.items()}},
        dims=site_dims({site: value.shape[3:] for site, value in values.items()}, "latent"),
        coords={"observation": index},
        name="reference",
        sample_dims=["chain", "draw"],
        attrs={
            "/": {"model_name": "reference", "seed": seed},
            "posterior": library_attrs() | {"method": method},
        },
    )
    return tree


def convergence_of(tree: xr.DataTree) -> xr.Dataset:
    """R-hat and bulk effective sample size of each latent number, over (observation, latent)."""
    import arviz_stats

    flat = _flat(tree["posterior"].to_dataset(), stack=False)
    arviz: Any = arviz_stats  # untyped in part
    return xr.Dataset({"rhat": arviz.rhat(flat), "ess": arviz.ess(flat, method="bulk")})


def _refuse(convergence: xr.Dataset, chains: int) -> None:
    rhat, ess = float(convergence["rhat"].max()), float(convergence["ess"].min())
    enough = SMALLEST_ESS_PER_CHAIN * chains
    if not (rhat <= LARGEST_RHAT and ess >= enough):
        raise ValueError(
            f"NUTS has not converged: largest R-hat {rhat:.3f} (at most {LARGEST_RHAT}), smallest effective "
            f"sample size {ess:.0f} (at least {enough}), {convergence.attrs['divergences']} divergences; "
            "give more draws or warmup"
        )


def _flat(posterior: xr.Dataset, *, stack: bool = True) -> xr.DataArray:
    """All latents as one array, (sample or chain and draw, observation, latent), with names for latent; where
    some are shared by the observations, all are numbers of one posterior, without this dimension."""
    parts = []
    local = all("observation" in values.dims for values in posterior.data_vars.values())
    lead = ("chain", "draw", "observation") if local else ("chain", "draw")
    for site, values in posterior.data_vars.items():
        values = values.transpose(*lead, ...)
        array = values.values.reshape(*values.shape[: len(lead)], -1)
        coords: dict[str, Any] = {"latent": coordinate_names(str(site), values.shape[len(lead) :])}
        if local:
            coords["observation"] = values["observation"]
        parts.append(xr.DataArray(array, coords, (*lead, "latent")))
    flat = xr.concat(parts, "latent")
    return flat.stack(sample=("chain", "draw"), create_index=False) if stack else flat


def _quantiles(flat: xr.DataArray) -> xr.DataArray:
    """1000 quantiles of each marginal: draws of different number become comparable."""
    return flat.quantile((np.arange(1000) + 0.5) / 1000, dim="sample", method="hazen")
