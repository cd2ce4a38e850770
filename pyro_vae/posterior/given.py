"""Programs given draws of the latents that all observations share: what is left is about single ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from pyro import poutine
from torch import Tensor

from pyro_vae.naming import named
from pyro_vae.posterior.evaluation.preparation import prepare_joint
from pyro_vae.posterior.evaluation.sites import in_data_plate, sample_sites

Program = Callable[..., Any]


class Given(NamedTuple):
    """A model and a guide without their shared latents, which have the values ``shared``."""

    model: Program
    guide: Program
    shared: dict[str, Tensor]


def given_shared(model: Program, guide: Program, data: Any, *, draws: int, seed: int) -> list[Given]:
    """The pair given each of some draws of its shared latents from the guide.

    Parameters
    ----------
    model, guide
        A Pyro pair, some of whose latents lie outside of the plate of the observations.
    data
        What the guide is run on: some of the data that it was fitted to.
    draws
        Of the guide.
    seed
        Of those draws.

    Raises
    ------
    ValueError
        If no latent lies in the plate of the observations, or the pair does not run on the data.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(w, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     w = pyro.sample("w", dist.Delta(torch.tensor(3.0)))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal((x + w) / 2, 0.5**0.5))
    >>> (given,) = given_shared(model, guide, torch.zeros(4), draws=1, seed=0)
    >>> given.shared, list(poutine.trace(given.model).get_trace(torch.zeros(4)).nodes)[1:3]
    ({'w': tensor(3.)}, ['data', 'z'])
    """
    pair = prepare_joint(model, guide, data, dtypes=(None,))
    found = []
    with pair.evaluation(seed):
        for _ in range(draws):
            guide_trace, model_trace = pair.traces(pair.tensors, 1)
            latents = {name: s for name, s in sample_sites(model_trace).items() if not s["is_observed"]}
            shared = [name for name, site in latents.items() if not in_data_plate(site, pair.plate)]
            if len(shared) == len(latents):
                raise ValueError(_none_of_their_own(shared))
            # with what an autoguide draws on the way to them
            outside = {
                name: site["value"]
                for name, site in sample_sites(guide_trace).items()
                if not in_data_plate(site, pair.plate)
            }
            values = {name: outside[name] for name in shared if name in outside}
            found.append(Given(_fixed(model, outside), _fixed(guide, outside), values))
    return found


def average_over_shared(reports: Sequence[xr.Dataset]) -> xr.Dataset:
    """What :func:`~pyro_vae.posterior.importance.diagnose` says of the same observations given each of some
    draws of the shared latents, as one: log evidence is that of the mean density, log E_q(w) p(x|w), with an
    error that holds the spread over the draws; ELBO, KL and reconstruction are means; k̂ is the worst of them,
    and so is the effective number of draws.

    Examples
    --------
    >>> one = xr.Dataset({"log_evidence": 0.0, "log_evidence_se": 0.0, "khat": 0.1, "elbo": -1.0})
    >>> both = average_over_shared([one, one + np.log(3.0)])
    >>> float(np.exp(both["log_evidence"])), round(float(both["khat"]), 2)
    (2.0, 1.2)
    """
    if len(reports) == 1:
        return reports[0]
    together = xr.concat(reports, "shared_draw", combine_attrs="drop_conflicts")
    found = together.mean("shared_draw", keep_attrs=True)
    for name in ("khat", "rounds"):
        if name in together:
            found[name] = together[name].max("shared_draw")
    for name in ("ess", "converged"):
        if name in together:
            found[name] = together[name].min("shared_draw")
    evidence, count = together["log_evidence"], len(reports)
    top = evidence.max("shared_draw")
    density: xr.DataArray = xr.apply_ufunc(np.exp, evidence - top)
    mean = density.mean("shared_draw")
    found["log_evidence"] = top + np.log(mean)
    errors = (density * together["log_evidence_se"]).fillna(np.inf)  # of a density of 0 that is not known
    within = np.sqrt((errors**2).sum("shared_draw")) / count
    between = density.std("shared_draw", ddof=1) / np.sqrt(count)
    found["log_evidence_se"] = np.hypot(within, between) / mean
    return named(found).assign_attrs(shared_draws=count)


def _none_of_their_own(shared: Sequence[str]) -> str:
    return (
        f"every latent of the model ({', '.join(shared)}) is shared by all observations, so that none of "
        "these has a posterior of its own to study; fit the pair in Python and ask pyro_vae.diagnose(model, "
        "guide, x), which takes the joint posterior"
    )


def _fixed(program: Program, values: dict[str, Tensor]) -> Program:
    """The program with sites of these values, hidden."""

    def given(*args: Any, **kwargs: Any) -> Any:
        with poutine.block(hide=list(values)), poutine.condition(data=values):
            return program(*args, **kwargs)

    return given
