"""The latents of a model, found by running it once: those of each observation, and those that all share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.guides.latents import LatentError
from pyro_vae.guides.latents.masks import is_masked
from pyro_vae.guides.latents.plates import ObservationPlate, plain_shape
from pyro_vae.guides.latents.sites import InnerPlate, LocalSite
from pyro_vae.guides.latents.supports import shared_support

OUTSIDE = (
    "An encoder guide covers latents of one observation; give it globals='AutoNormal' for those that all "
    "share, or poutine.block(model, expose=[...]) beside an autoguide in pyro.infer.autoguide.AutoGuideList."
)

DISCRETE = (
    "and an encoder guide draws continuous latents only: leave it to TraceEnum_ELBO, by "
    "infer={{'enumerate': 'parallel'}} or pyro.infer.config_enumerate(model), or hide it with "
    "poutine.block(model, hide=['{name}'])"
)


class Latents(NamedTuple):
    """What was found."""

    sites: tuple[LocalSite, ...]
    """Of each observation, in order."""
    plate: ObservationPlate
    """That they sit in."""
    shared: tuple[str, ...]
    """Names of the others."""
    by_row: tuple[str, ...]
    """Of these, the ones that have a value for each row of the data."""

    def without_shared(self, outside: str = OUTSIDE) -> "Latents":
        """These, or a ValueError if there are latents outside of the plate of the observations."""
        if self.by_row:
            raise _without_plate(self.by_row[0], self.plate.batch_size)
        if self.shared:
            name = self.shared[0]
            raise LatentError(f"latent '{name}' sits outside the plate of the observations. {outside}")
        return self


class _GivenSubsamples(Messenger):
    """Notes the plates whose indices the model passes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and msg["value"] is not None:
            self.names.add(msg["name"])


def _init(site: Mapping[str, Any]) -> Tensor:
    # Discrete latents are judged below; until then any value does.
    value: Tensor = site["fn"].sample() if site["fn"].support.is_discrete else init_to_feasible(site)
    return value


def find_latents(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    rows: int | None = None,
    plate: str | None = None,
    enumerates: bool = True,
    outside: str = OUTSIDE,
    discrete: str = DISCRETE,
) -> Latents:
    """Run the model once and return its latents, in order, and the plate of the observations.

    The run is invisible to the surrounding program and leaves torch's random streams as they were. Raises
    ValueError if there is no latent of an observation, or one is discrete, or in a sequential plate, or its
    support depends on the observation or on a parameter.

    Parameters
    ----------
    model, args, kwargs
        The program, and what it is called with.
    rows
        How many observations the encoder has features for: of several plates, that of the observations has
        this size.
    plate
        The name of that plate, where it is known.
    enumerates
        Whether discrete latents that are marked to be enumerated are left out; all are refused otherwise.
    outside, discrete
        What to say of latents outside of every plate, and of discrete ones.
    """
    given = _GivenSubsamples()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda), poutine.block(), given:
        trace = poutine.trace(InitMessenger(_init)(model)).get_trace(*args, **kwargs)
    latents = [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    ]
    drawn = [site for site in latents if not (enumerates and _is_enumerated(site))]
    if not drawn:
        hidden = ", hidden by poutine.block, or enumerated" if latents else " or hidden by poutine.block"
        raise LatentError(
            f"the model has no latent variable for this guide: every sample site is observed{hidden}. "
            "An encoder guide needs at least one latent in the plate of the observations."
        )
    observed = [s for s in trace.nodes.values() if s["type"] == "sample" and s["is_observed"]]
    frame = _observation_frame(drawn, observed, rows, plate, outside)
    opened = ObservationPlate(
        name=frame.name,
        size=frame.full_size or frame.size,
        batch_size=frame.size,
        given=frame.name in given.names,
        dim=frame.dim,
    )
    local = [site for site in drawn if frame.name in _names(site)]
    shared = tuple(str(site["name"]) for site in drawn if frame.name not in _names(site))
    by_row = tuple(str(site["name"]) for site in drawn if _shape(site)[:1] == (frame.size,))
    sites = tuple(_local_site(site, frame, discrete) for site in local)
    return Latents(sites, opened, shared, tuple(name for name in by_row if name in shared))


def _without_plate(name: str, rows: int) -> LatentError:
    return LatentError(
        f"latent '{name}' has a value for each of the {rows} observations, and is in no plate; write it in "
        "`with pyro.plate('data', len(x)):`, and declare by .to_event() the dimensions within an observation "
        "alone"
    )


def _is_enumerated(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("enumerate")) and site["fn"].has_enumerate_support


def _shape(site: Mapping[str, Any]) -> tuple[int, ...]:
    """Of a latent in no plate."""
    fn = site["fn"]
    return () if site["cond_indep_stack"] else tuple(fn.batch_shape) + tuple(fn.event_shape)


def _names(site: Mapping[str, Any]) -> list[str]:
    return [frame.name for frame in site["cond_indep_stack"]]


def _observation_frame(
    latents: Sequence[Any], observed: Sequence[Any], rows: int | None, plate: str | None, outside: str
) -> Any:
    """Of the plates that latents sit in, the one of the observations: that of this name or size, that data
    sit in, or the innermost."""
    for site in latents:
        if any(not frame.vectorized for frame in site["cond_indep_stack"]):
            raise LatentError(
                f"latent '{site['name']}' sits in a sequential plate (for i in pyro.plate(...)); write it "
                "with `with pyro.plate(...):`"
            )
    found = {frame.name: frame for site in latents for frame in site["cond_indep_stack"]}
    if not found:
        name = latents[0]["name"]
        if rows is not None and _shape(latents[0])[:1] == (rows,):
            raise _without_plate(name, rows)
        raise LatentError(
            f"latent '{name}' sits outside the plate of the observations, and so do all latents. {outside}"
        )
    if plate in found:
        return found[plate]
    of_this_size = [f for f in found.values() if rows is not None and rows in (f.size, f.full_size)]
    data = [name for site in observed for name in _names(site)]
    return max(of_this_size or found.values(), key=lambda f: (data.count(f.name), f.dim))


def _local_site(site: Mapping[str, Any], observations: Any, discrete: str) -> LocalSite:
    name, fn, value = site["name"], site["fn"], site["value"]
    if fn.support.is_discrete:
        raise LatentError(f"latent '{name}' is discrete ({type(fn).__name__}), {discrete.format(name=name)}")
    inner = sorted(
        (f for f in site["cond_indep_stack"] if f.name != observations.name), key=lambda frame: frame.dim
    )
    dims = {observations.dim, *[frame.dim for frame in inner]}
    undeclared = [i for i in range(-len(fn.batch_shape), 0) if i not in dims and fn.batch_shape[i] > 1]
    if undeclared:
        raise LatentError(
            f"latent '{name}' has batch shape {tuple(fn.batch_shape)} in plate at dim {observations.dim}; "
            "declare the dimensions within an observation with .to_event(), or by a plate"
        )
    event_dim = len(fn.event_shape)
    support = shared_support(fn.support, name, event_dim)
    with helpful_support_errors(site):
        unconstrained = biject_to(support).inv(value.detach())
    return LocalSite(
        name,
        support,
        plain_shape(fn.event_shape),
        plain_shape(unconstrained.shape[len(fn.batch_shape) :]),
        tuple(InnerPlate(frame.name, frame.size, frame.dim) for frame in inner),
        observations.dim,
        is_masked(site),
    )
