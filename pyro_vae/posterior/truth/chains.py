"""Run Pyro's NUTS on the latents of all observations, and see whether its chains agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_sample, init_to_value
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.devices import making_tensors_on
from pyro_vae.naming import named
from pyro_vae.pairs.isolation import owner
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.sites import coordinate_names, in_data_plate, sample_sites

LARGEST_RHAT = 1.01
SMALLEST_ESS_PER_CHAIN = 100
"""Of a reference that is fit to judge others by (Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021)."""


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


class _Unscaled(Messenger):
    """Takes subsampling and annealing off: they would temper the posterior."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def latent_sites(pair: Pair) -> dict[str, Any]:
    """The model's latents, as Pyro traced them."""
    with pair.evaluation(0):
        trace = pair.run_model(pair.tensors, 1)
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def convergence_of(tree: xr.DataTree) -> xr.Dataset:
    """R-hat and bulk effective sample size of each latent number, over (observation, latent)."""
    import arviz_stats

    flat = all_latents(tree["posterior"].to_dataset(), stack=False)
    arviz: Any = arviz_stats  # untyped in part
    with np.errstate(divide="ignore", invalid="ignore"):  # of few draws: NaN, not converged
        return named(xr.Dataset({"rhat": arviz.rhat(flat), "ess": arviz.ess(flat, method="bulk")}))


def require_convergence(convergence: xr.Dataset, chains: int) -> None:
    """Raise a ValueError unless the chains agree: such a reference would judge wrongly."""
    rhat, ess = float(convergence["rhat"].max()), float(convergence["ess"].min())
    enough = SMALLEST_ESS_PER_CHAIN * chains
    if not (rhat <= LARGEST_RHAT and ess >= enough):
        raise ValueError(
            f"NUTS has not converged: largest R-hat {rhat:.3f} (at most {LARGEST_RHAT}), smallest effective "
            f"sample size {ess:.0f} (at least {enough}), {convergence.attrs['divergences']} divergences; "
            "give more draws or warmup"
        )


def all_latents(posterior: xr.Dataset, *, stack: bool = True) -> xr.DataArray:
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
