"""Measure one fit, and make one measure of those of many fits."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine

from pyro_vae.data import DataSet
from pyro_vae.devices import forked_streams
from pyro_vae.guides import AmortizedMultivariateNormal, AmortizedNormal, Refined
from pyro_vae.models import VAE, traverse
from pyro_vae.naming import named
from pyro_vae.pairs.isolation import Program, evaluating, modules_of
from pyro_vae.posterior import active_units, calibrate, diagnose, from_pyro_svi, inference_gaps, repair
from pyro_vae.posterior.given import Given, average_over_shared, given_shared
from pyro_vae.study.material import Material
from pyro_vae.svi import EpochRecord, Fit

if TYPE_CHECKING:
    import xarray as xr

SIMULATIONS = 500
"""Of each model, for calibration."""
MOST_STEPS = 50
"""Of refinement: simulated observations may start far from where they end."""
SHOWN_OBSERVATIONS = 8
"""Held-out observations whose posterior draws are kept and drawn."""
REFERENCED_OBSERVATIONS = 4
"""Of those, the ones whose posterior is drawn again, by better means."""
KEPT_DRAWS = 500
DRAWS_OF_SHARED = 5
"""Of the latents that all observations share: held-out observations are measured given each of them."""
MOMENT_DRAWS, MOMENT_ROWS = 200, 64
"""Draws, of so many observations at once, where moments of q have no closed form."""
SAMPLES = 8
WALK = 3.0
"""How far a traversal goes from the origin, in standard deviations of the prior."""
WALK_STEPS = 7


class ScaleHistory:
    """A callback of a fit: after each epoch the guide's σ of each latent, geometric mean over fixed rows."""

    def __init__(self, guide: Any, rows: torch.Tensor) -> None:
        self.guide, self.rows = guide, rows
        self.epochs: list[np.ndarray[Any, Any]] = []

    @torch.no_grad()
    def __call__(self, _record: EpochRecord) -> None:
        """Note σ; it leaves the random stream alone."""
        device = next(self.guide.parameters()).device
        log_scale = self.guide.local_parameters(self.rows.to(device))["log_scale"]
        self.epochs.append(log_scale.mean(0).exp().cpu().numpy())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"epochs": [torch.from_numpy(epoch) for epoch in self.epochs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epochs = [epoch.numpy() for epoch in state["epochs"]]


def measure_fit(fitted: Fit, material: Material, seed: int) -> "dict[str, xr.Dataset]":
    """Diagnostics and calibration of one fit on held-out data, of its encoder and refined; active units and
    latents.

    Where latents are shared by all observations, densities are means over draws of them from the guide, and
    all else is given the first of these.
    """
    config, x = material.config, material.held_out.x
    pairs = _given(fitted, material, seed, DRAWS_OF_SHARED)
    model, guide, _ = pairs[0]
    simulations: dict[str, Any] = {"n": SIMULATIONS, "data": x, "seed": seed}
    asked: dict[str, Any] = {"draws": config.draws, "seed": seed}
    refined = Refined(guide, model=model, steps=MOST_STEPS)
    return {
        "diagnostics": average_over_shared([diagnose(m, g, x, **asked) for m, g, _ in pairs]),
        "refined": average_over_shared([diagnose(m, g, x, **asked, refined=True) for m, g, _ in pairs]),
        "calibration": calibrate(model, guide, **simulations),
        "refined_calibration": calibrate(model, refined, **simulations),
        "units": active_units(model, guide, x, seed=seed),
        "latents": _latents(model, guide, fitted, material.held_out),
    }


def fit_gaps(fitted: Fit, material: Material) -> "dict[str, xr.Dataset]":
    """Where a fit loses, on the first few held-out observations."""
    rows = material.held_out.x[: material.config.gap_observations]
    model, guide, _ = _given(fitted, material, 0, 1)[0]
    return {"gaps": inference_gaps(model, guide, rows, draws=material.config.draws)}


def _given(fitted: Fit, material: Material, seed: int, draws: int) -> list[Given]:
    """The fit's programs, given draws of the latents that all observations share, if there are any."""
    if not material.account.get("shared"):
        return [Given(fitted.model, fitted.guide, {})]
    rows = material.train.x[: material.config.batch_size]  # the guide has seen as many at once
    return given_shared(fitted.model, fitted.guide, rows, draws=draws, seed=seed)


def posterior_tree(
    fitted: Fit, material: Material, name: str, calibration: "xr.Dataset | None" = None
) -> "xr.DataTree":
    """Draws for a few held-out observations, and what the model makes of draws and walks in latent space.

    Beside the groups of :func:`~pyro_vae.posterior.tree.from_pyro_svi`: ``prior_predictive``, data drawn from
    the model; ``traversal``, means of x (latent, offset, feature) on walks from the origin along each axis,
    of a :class:`~pyro_vae.models.VAE` alone; ``repaired`` and ``repair``, draws and report of
    :func:`~pyro_vae.posterior.repair.ladder.repair` for some of the observations, by its fast steps;
    ``shared``, draws from the guide of the latents that all observations share, of which the first is given
    in everything else.
    """
    import xarray as xr

    held_out = material.held_out
    given = _given(fitted, material, 0, KEPT_DRAWS if material.account.get("shared") else 1)
    model, guide, _ = given[0]
    shown = held_out.x[:SHOWN_OBSERVATIONS]
    tree = from_pyro_svi(
        model,
        guide,
        shown,
        draws=KEPT_DRAWS,
        history=fitted.history,
        calibration=calibration,
        name=name,
    )
    better = repair(
        model,
        guide,
        held_out.x[:REFERENCED_OBSERVATIONS],
        draws=KEPT_DRAWS,
        steps=("resample", "local"),
    )
    for ours, theirs in (("repaired", "posterior"), ("repair", "repair")):
        tree[ours] = xr.DataTree(better[theirs].to_dataset())
    device, observed = _device(fitted), tree["observed_data"].to_dataset()
    tree["prior_predictive"] = xr.DataTree(_samples(model, held_out, observed, device))
    if given[0].shared:
        tree["shared"] = xr.DataTree(_draws_of_shared(given))
    if not isinstance(model, VAE):
        return tree
    device = next(model.parameters()).device
    walks = traverse(model, torch.zeros(model.latent_dim, device=device), span=WALK, steps=WALK_STEPS)
    tree["traversal"] = xr.DataTree(
        named(
            xr.Dataset(
                {"x": (("latent", "offset", "feature"), walks.cpu().numpy())},
                {"offset": np.linspace(-WALK, WALK, WALK_STEPS)},
            ),
            {"x": ("mean of x on a walk along each latent", "")},
        )
    )
    return tree


def refined_tree(fitted: Fit, material: Material, name: str) -> "xr.DataTree":
    """Draws of the refined posteriors of all held-out observations: groups ``posterior`` and
    ``sample_stats``."""
    import xarray as xr

    model, guide, _ = _given(fitted, material, 0, 1)[0]
    refined = Refined(guide, model=model, steps=MOST_STEPS)
    tree = from_pyro_svi(model, refined, material.held_out.x, draws=KEPT_DRAWS, name=f"{name}, refined")
    groups = {group: tree[group].to_dataset() for group in ("posterior", "sample_stats")}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **groups})


def combine(measured: "Mapping[str, Sequence[Mapping[str, xr.Dataset]]]", measure: str) -> "xr.Dataset":
    """One measure of all fits, over (guide, seed, …), from those of each guide's seeds."""
    import xarray as xr

    guides = []
    for by_seed in measured.values():
        seeds = [fit[measure] for fit in by_seed]
        together = xr.concat(seeds, "seed", combine_attrs="drop_conflicts")
        guides.append(together.assign_coords(seed=np.arange(len(seeds))))
    combined = xr.concat(guides, "guide", combine_attrs="drop_conflicts")
    return combined.assign_coords(guide=list(measured))


@torch.no_grad()
def _samples(model: Program, held_out: DataSet, observed: "xr.Dataset", device: torch.device) -> "xr.Dataset":
    """What the model draws in place of the first few held-out observations."""
    import xarray as xr

    rows = torch.as_tensor(held_out.x[:SAMPLES]).to(device)
    with evaluating(model), forked_streams():
        torch.manual_seed(0)
        trace = poutine.trace(poutine.uncondition(model)).get_trace(rows)
    drawn: dict[str, Any] = {name: node["value"] for name, node in trace.nodes.items() if "value" in node}
    samples = {
        str(site): (("chain", "draw", *array.dims[1:]), drawn[str(site)].cpu().numpy()[None])
        for site, array in observed.data_vars.items()
    }
    return named(xr.Dataset(samples), {site: (f"{site}, drawn from the model", "") for site in samples})


def _draws_of_shared(given: Sequence[Given]) -> "xr.Dataset":
    """By site, (chain, draw, …)."""
    import xarray as xr

    drawn = {site: np.stack([one.shared[site].cpu().numpy() for one in given]) for site in given[0].shared}
    sizes = {site: [f"{site}_dim_{i}" for i in range(values.ndim - 1)] for site, values in drawn.items()}
    found = xr.Dataset({site: (("chain", "draw", *sizes[site]), v[None]) for site, v in drawn.items()})
    return named(found, {site: (f"{site}, drawn from the guide", "") for site in drawn})


def _device(fitted: Fit) -> torch.device:
    parameters = itertools.chain.from_iterable(
        module.parameters() for module in modules_of(fitted.model, fitted.guide)
    )
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


@torch.no_grad()
def _latents(model: Program, guide: Any, fitted: Fit, held_out: DataSet) -> "xr.Dataset":
    """Mean and σ of q(z|x) of each held-out observation, of what has no closed form by draws."""
    import xarray as xr

    if isinstance(guide, AmortizedNormal | AmortizedMultivariateNormal) and isinstance(model, VAE):
        posterior: Any = guide.posterior(torch.as_tensor(held_out.x).to(_device(fitted)))
        mean, scale = posterior.mean.cpu().numpy(), posterior.stddev.cpu().numpy()
    else:
        mean, scale = _moments(model, guide, held_out.x)
    dims = ("observation", "latent")
    latents = named(xr.Dataset({"mean": (dims, mean), "scale": (dims, scale)}))
    if held_out.y is None:
        return latents
    labels = np.asarray(held_out.y)
    return latents.assign_coords(
        label=("observation", labels if labels.dtype.kind in "iuf" else labels.astype(str))
    )


def _moments(model: Program, guide: Program, x: Any) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Mean and standard deviation of every latent number by draws, (observations, latents)."""
    means, scales = [], []
    for start in range(0, len(x), MOMENT_ROWS):
        rows = x[start : start + MOMENT_ROWS]
        drawn = from_pyro_svi(model, guide, rows, draws=MOMENT_DRAWS)["posterior"].to_dataset()
        values = [array.values[0].reshape(MOMENT_DRAWS, len(rows), -1) for array in drawn.data_vars.values()]
        flat = np.concatenate(values, axis=2)
        means.append(flat.mean(0))
        scales.append(flat.std(0))
    return np.concatenate(means), np.concatenate(scales)
