"""A fit as an ArviZ tree: draws of the guide, prior and predictive draws, densities, and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_vae.arguments import check_numbers
from pyro_vae.posterior.arguments import check_request, require_tree
from pyro_vae.posterior.drawing import CHUNK, Block, SharedLatentError
from pyro_vae.posterior.joint import joint_groups
from pyro_vae.posterior.preparation import prepare, prepare_joint, select
from pyro_vae.version import __version__

Array = NDArray[Any]

GROUPS = ("posterior", "prior", "posterior_predictive", "observed_data", "log_likelihood", "sample_stats")


def from_pyro_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 1000,
    seed: int = 0,
    *,
    observations: Sequence[int] | None = None,
    history: xr.Dataset | None = None,
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
    name
        Name of the tree, and its attribute ``model_name``, which also survives a file.

    Returns
    -------
    xr.DataTree
        Groups ``posterior`` and ``prior`` (latents), ``posterior_predictive`` (replicates drawn from the
        unconditioned model, never the data back), ``observed_data``, ``log_likelihood`` (log p(x|z), nats),
        ``sample_stats`` (``log_p``: log p(x, z), ``log_q``: log q(z|x), nats) and, if given, ``loss``.
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
    ['log_likelihood', 'observed_data', 'posterior', 'posterior_predictive', 'prior', 'sample_stats']
    >>> dict(tree["posterior"].sizes)
    {'chain': 1, 'draw': 100, 'observation': 5, 'latent': 2}
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk)
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; give text")
    if history is not None and not isinstance(history, xr.Dataset):
        raise TypeError(f"history is a {type(history).__name__}; give fit.history")
    index, subset = select(data, observations)
    try:
        pair = prepare(model, guide, subset)
    except SharedLatentError as error:
        if observations is not None:
            raise ValueError(
                "observations names some of the data, but all of them share latents; leave it out"
            ) from error
        pair = prepare_joint(model, guide, data)
        joint = joint_groups(pair, draws, seed, GROUPS, progress=progress)
        return _tree(*joint, index, name, seed, history)
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
    return _tree(groups, _dims(groups), index, name, seed, history)


def _tree(
    groups: dict[str, dict[str, Array]],
    dims: dict[str, list[str]],
    index: NDArray[np.int64],
    name: str,
    seed: int,
    history: xr.Dataset | None,
) -> xr.DataTree:
    """The groups as ArviZ has them."""
    import arviz_base

    attrs: dict[str, Any] = {group: library_attrs() for group in GROUPS if group != "observed_data"}
    attrs["/"] = {"model_name": name, "seed": seed}
    coords = {"observation": index} if any("observation" in own for own in dims.values()) else {}
    tree: xr.DataTree = arviz_base.from_dict(
        groups, name=name, dims=dims, coords=coords, sample_dims=["chain", "draw"], attrs=attrs
    )
    if history is not None:
        tree["loss"] = xr.DataTree(dataset=history)
    return tree


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
        raise TypeError(f"trees is a {type(trees).__name__}; give trees by name, {{'guide': tree}}")
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


def site_dims(shapes: Mapping[str, Sequence[int]], word: str) -> dict[str, list[str]]:
    """Dimension names of sites with these event shapes: ``word`` for the only vector, else numbered.

    >>> site_dims({"z": (8,), "scale": ()}, "latent")
    {'z': ['observation', 'latent'], 'scale': ['observation']}
    >>> site_dims({"image": (28, 28)}, "feature")
    {'image': ['observation', 'image_dim_0', 'image_dim_1']}
    """
    vectors = [site for site, shape in shapes.items() if len(shape) == 1]
    dims = {}
    for site, shape in shapes.items():
        event = [f"{site}_dim_{i}" for i in range(len(shape))]
        # a dimension named like a variable would replace it
        dims[site] = ["observation", *([word] if vectors == [site] and site != word else event)]
    return dims
