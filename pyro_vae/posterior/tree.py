"""A fit as an ArviZ tree: draws of the guide, prior and predictive draws, densities, and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_vae.arguments import brief, check_numbers, kind
from pyro_vae.naming import NATS, ONE, attributes
from pyro_vae.older_arviz import teach_older_arviz
from pyro_vae.posterior.arguments import check_request, require_tree
from pyro_vae.posterior.evaluation.block import Block
from pyro_vae.posterior.evaluation.drawing import CHUNK, Pair
from pyro_vae.posterior.evaluation.preparation import prepare_chosen
from pyro_vae.posterior.evaluation.sites import sample_sites, site_dims
from pyro_vae.posterior.joint import joint_groups
from pyro_vae.version import __version__

Array = NDArray[Any]

GROUPS = (
    "posterior",
    "prior",
    "posterior_predictive",
    "observed_data",
    "log_likelihood",
    "log_prior",
    "sample_stats",
)

OF_VALUES = {
    "posterior": "{}, drawn from the guide",
    "prior": "{}, drawn from the prior",
    "posterior_predictive": "{}, drawn anew",
    "observed_data": "{}, observed",
}
OF_DENSITIES = {"log_likelihood": "log p({} | latents)", "log_prior": "log p({})"}
OF_STATS = {"log_p": "log p(x, z)", "log_q": "log q(z | x)"}
"""What variables are called where they are shown: ``long_name``; densities are in nats."""


def from_pyro_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 1000,
    seed: int = 0,
    *,
    observations: Sequence[int] | None = None,
    history: xr.Dataset | None = None,
    calibration: xr.Dataset | None = None,
    name: str = "svi",
    chunk: int = CHUNK,
    progress: bool = False,
) -> xr.DataTree:
    """Draws from a guide as the tree that every ArviZ function takes.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk, progress
        As in :func:`~pyro_vae.posterior.importance.log_weights`.
    observations
        Which observations to keep. All draws of all observations are stored: ten thousand images of 784
        pixels with a thousand draws are 31 GB, so give a few here.
    history
        The history of a fit (``fit.history``); it becomes the group ``loss``.
    calibration
        From :func:`~pyro_vae.posterior.simulated.calibration.calibrate`; its integral transforms become the
        group ``prior_sbc``, a simulation in the place of a draw, for ``arviz_plots.plot_ecdf_pit``.
    name
        Name of the tree, and its attribute ``model_name``, which also survives a file.

    Returns
    -------
    xr.DataTree
        Groups ``posterior`` and ``prior`` (latents), ``posterior_predictive`` (replicates drawn from the
        unconditioned model, never the data back), ``observed_data``, ``log_likelihood`` (log p(x|z), nats),
        ``log_prior`` (log p(z), nats), ``sample_stats`` (``log_p``: log p(x, z), ``log_q``: log q(z|x),
        nats) and, if given, ``loss`` and ``prior_sbc``. Every variable has a ``long_name``, densities have
        ``units``; sites with integer values, counts and classes, are integers.

        Dimensions (chain, draw, observation, ...) with one chain: draws of a guide are independent, so their
        R-hat and effective sample size mean nothing, and log_likelihood must not be given to ``arviz.loo``,
        which assumes latents shared by the observations.

        Latents that all observations share have no dimension ``observation``; their draws are joint, log_p
        and log_q are of everything, and log_likelihood may then be given to ``arviz.loo``.

        The only vector-valued latent has dimension ``latent``, the only vector-valued observed site
        ``feature``; otherwise the dimensions are ``<site>_dim_0`` and so on.

    Raises
    ------
    ValueError
        As :func:`~pyro_vae.posterior.importance.log_weights`.
    IndexError
        If ``observations`` points outside the data.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x[:, None] / 3, torch.full((2,), 0.7)).to_event(1))
    >>> tree = from_pyro_svi(model, guide, torch.randn(5), draws=100)
    >>> sorted(tree.children)
    ['log_likelihood', 'log_prior', 'observed_data', 'posterior', 'posterior_predictive', 'prior',
    'sample_stats']
    >>> dict(tree["posterior"].sizes)
    {'chain': 1, 'draw': 100, 'observation': 5, 'latent': 2}
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk)
    if not isinstance(name, str):
        raise TypeError(f"name is {brief(name)}; give text")
    if history is not None and not isinstance(history, xr.Dataset):
        raise TypeError(f"history is {kind(history)}; give fit.history")
    if calibration is not None and (not isinstance(calibration, xr.Dataset) or "pit" not in calibration):
        raise TypeError(f"calibration is {kind(calibration)}; give what calibrate(...) returns")
    index, pair, shared = prepare_chosen(model, guide, data, observations, predictive=True)
    if shared:
        joint, dims = joint_groups(pair, draws, seed, GROUPS, progress=progress)
        return _tree(_with_integers(joint, pair), dims, index, name, seed, history, calibration)
    groups: dict[str, dict[str, Array]] = {group: {} for group in GROUPS}
    for block in pair.blocks(draws, seed, chunk, predictive=True, progress=progress):
        for group, values in _values(block).items():
            for site, value in values.items():
                into = groups[group].setdefault(
                    site, np.empty((1, draws, len(index), *value.shape[2:]), value.dtype)
                )
                into[0, block.draws, block.observations] = value
        for site, observed in block.observed.items():
            array = observed.numpy()
            into = groups["observed_data"].setdefault(
                site, np.empty((len(index), *array.shape[1:]), array.dtype)
            )
            into[block.observations] = array
    return _tree(_with_integers(groups, pair), _dims(groups), index, name, seed, history, calibration)


def _with_integers(groups: dict[str, dict[str, Array]], pair: Pair) -> dict[str, dict[str, Array]]:
    """The groups with integer values as integers: torch's counts are floating-point numbers, which ArviZ
    takes for a continuous quantity, smooths and draws as a density."""
    args = pair.tensors if pair.whole else tuple(arg[:2] for arg in pair.args)
    with pair.evaluation(0):
        sites = sample_sites(pair.run_model(args, 1))
    discrete = {name for name, site in sites.items() if _is_discrete(site["fn"])}
    for group in OF_VALUES:
        for site, values in groups[group].items():
            if site in discrete and values.dtype.kind == "f" and bool((values == np.rint(values)).all()):
                groups[group][site] = values.astype(np.int64)
    return groups


def _is_discrete(distribution: Any) -> bool:
    try:
        return bool(distribution.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


def _tree(
    groups: dict[str, dict[str, Array]],
    dims: dict[str, list[str]],
    index: NDArray[np.int64],
    name: str,
    seed: int,
    history: xr.Dataset | None,
    calibration: xr.Dataset | None,
) -> xr.DataTree:
    """The groups as ArviZ has them."""
    import arviz_base

    teach_older_arviz()
    log_prior = groups.pop("log_prior")
    attrs: dict[str, Any] = {group: library_attrs() for group in groups if group != "observed_data"}
    attrs["/"] = {"model_name": name, "seed": seed}
    coords = {"observation": index} if any("observation" in own for own in dims.values()) else {}
    tree: xr.DataTree = arviz_base.from_dict(
        groups, name=name, dims=dims, coords=coords, sample_dims=["chain", "draw"], attrs=attrs
    )
    drawn = tree["posterior"].to_dataset()
    tree["log_prior"] = xr.DataTree(
        xr.Dataset(
            {site: (drawn[site].dims[: values.ndim], values) for site, values in log_prior.items()},
            {name: drawn[name] for name in ("chain", "draw", *coords) if name in drawn.coords},
            attrs=dict(drawn.attrs),
        )
    )  # ArviZ's own converter takes densities by site for the likelihood alone
    for group, called in (OF_VALUES | OF_DENSITIES).items():
        for site, array in tree[group].data_vars.items():
            array.attrs |= attributes(called.format(site), NATS if group in OF_DENSITIES else "")
    for stat, called in OF_STATS.items():
        tree["sample_stats"][stat].attrs |= attributes(called, NATS)
    if history is not None:
        tree["loss"] = xr.DataTree(dataset=history)
    if calibration is not None:
        tree["prior_sbc"] = xr.DataTree(dataset=prior_sbc(calibration))
    return tree


def prior_sbc(calibration: xr.Dataset) -> xr.Dataset:
    """The integral transforms of a calibration by latent site, simulations in the place of draws.

    Examples
    --------
    >>> pit = ("simulation", "latent"), np.full((50, 3), 0.5)
    >>> transforms = prior_sbc(xr.Dataset({"pit": pit}, {"latent": ["z[0]", "z[1]", "rate"]}))
    >>> {name: array.shape for name, array in transforms.data_vars.items()}
    {'z': (1, 50, 2), 'rate': (1, 50)}
    """
    pit = calibration["pit"].values
    sites: dict[str, list[int]] = {}
    for i, coordinate in enumerate(calibration["latent"].values):
        sites.setdefault(str(coordinate).partition("[")[0], []).append(i)
    vectors = [site for site in sites if f"{site}[0]" in calibration["latent"].values]
    transforms = {}
    for site, columns in sites.items():
        word = "latent" if vectors == [site] and site != "latent" else f"{site}_dim_0"
        dims = ("chain", "draw", word) if str(calibration["latent"].values[columns[0]]) != site else ()
        values = pit[None, :, columns]
        attrs = attributes(f"Q({site}) at the latent that made the data", ONE)
        transforms[site] = (dims or ("chain", "draw"), values if dims else values[..., 0], attrs)
    found = xr.Dataset(transforms, {"chain": [0], "draw": np.arange(len(pit))}, library_attrs())
    return found.assign_coords({str(dim): np.arange(size) for dim, size in found.sizes.items()})


def align_draws(
    trees: Mapping[str, xr.DataTree], *, group: str = "posterior", seed: int = 0
) -> dict[str, xr.DataTree]:
    """The same number of draws in one chain for every tree, so that ArviZ can show them together.

    Given unequal numbers (a guide's 1 × 1000 and NUTS's 4 × 250), ArviZ pads with NaN and draws empty
    forests and wrong densities, without an error. Trees with more draws or chains are thinned at random.

    Parameters
    ----------
    trees
        By name.
    group
        The group to keep.
    seed
        Of the thinning.

    Examples
    --------
    >>> import arviz_base
    >>> shapes = {"guide": (1, 400), "nuts": (4, 250)}
    >>> groups = {name: {"posterior": {"z": np.zeros(shape)}} for name, shape in shapes.items()}
    >>> trees = {name: arviz_base.from_dict(group) for name, group in groups.items()}
    >>> [dict(tree["posterior"].sizes) for tree in align_draws(trees).values()]
    [{'chain': 1, 'draw': 400}, {'chain': 1, 'draw': 400}]
    """
    if not isinstance(trees, Mapping) or isinstance(trees, xr.DataTree):
        raise TypeError(f"trees is {kind(trees)}; give trees by name, {{'guide': tree}}")
    if not trees:
        raise ValueError("trees is empty; give at least one tree by name")
    check_numbers(seed=seed)
    for name, tree in trees.items():
        require_tree(f"trees[{name!r}]", tree, group)
    fewest = min(tree[group].sizes["chain"] * tree[group].sizes["draw"] for tree in trees.values())
    aligned = {}
    for i, (name, tree) in enumerate(trees.items()):
        draws = tree[group].to_dataset().stack(sample=("chain", "draw"))
        keep = np.random.default_rng([seed, i]).permutation(draws.sizes["sample"])[:fewest]
        draws = draws.isel(sample=keep).drop_vars(["sample", "chain", "draw"]).rename(sample="draw")
        draws = draws.assign_coords(draw=np.arange(fewest)).expand_dims(chain=[0])
        draws = draws.transpose("chain", "draw", ...)
        aligned[str(name)] = xr.DataTree.from_dict({group: draws}, name=str(name))
    return aligned


def library_attrs() -> dict[str, str]:
    """Who made the draws, in the words of ArviZ."""
    return {"inference_library": "pyro_vae", "inference_library_version": __version__}


def _values(block: Block) -> dict[str, dict[str, Array]]:
    """What a block adds to each group, of shape (draws, observations, ...)."""
    return {
        "posterior": {site: value.numpy() for site, value in block.latents.items()},
        "prior": {site: value.numpy() for site, value in block.prior.items()},
        "posterior_predictive": {site: value.numpy() for site, value in block.replicates.items()},
        "log_likelihood": {site: value.numpy() for site, value in block.log_likelihood.items()},
        "log_prior": {site: value.numpy() for site, value in block.log_priors.items()},
        "sample_stats": {
            "log_p": (block.log_prior + block.reconstruction).numpy(),
            "log_q": block.log_guide.numpy(),
        },
    }


def _dims(groups: dict[str, dict[str, Array]]) -> dict[str, list[str]]:
    """Dimension names by variable, without chain and draw."""
    dims = {name: ["observation"] for name in groups["sample_stats"]}
    dims |= site_dims({site: value.shape[3:] for site, value in groups["posterior"].items()}, "latent")
    return dims | site_dims(
        {site: value.shape[1:] for site, value in groups["observed_data"].items()}, "feature"
    )
