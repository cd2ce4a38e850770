"""``sweep``: the fits of many seeds of one pair, on threads where that is faster."""

import difflib
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae.arguments import brief, check_numbers, kind, parameters_of
from pyro_vae.devices import resolve_device
from pyro_vae.pairs.seeded import MakePair, require_new, seeded_pair
from pyro_vae.svi.arguments import check_options
from pyro_vae.svi.engines.steps import CannotError
from pyro_vae.svi.fitting import fit
from pyro_vae.svi.result import Fit
from pyro_vae.svi.together import fit_together, has_workers

logger = logging.getLogger(__name__)


def sweep(make_pair: MakePair, seeds: Sequence[int], data: Any, **options: Any) -> list[Fit]:
    """Fit the same pair with several seeds.

    Each fit is the one that :func:`fit` gives with that seed, for a pair that was made after
    ``torch.manual_seed(seed)``: the same batches and the same noise, equal up to rounding. How they are
    computed follows from what is asked, never from the clock; the first that applies:

    1. **Threads over the native function**, one fit each: where it can express the graph, there is a C++
       compiler, and the steps of all seeds together are worth its build
       (:func:`~pyro_vae.svi.engines.choice.build_pays`) or ``engine="native"`` is given. 8 seeds of a
       64-128-8 network, 1,000 steps each on 2 cores, take 0.3 of the time of captured fits one after another,
       with an empty cache of builds 0.45 (``benchmarks/results/sweep.md``). It needs tensors on the CPU, and
       options among ``epochs``, ``steps``, ``batch_size``, ``lr``, ``objective``, ``max_norm``,
       ``optimizer``, ``schedule``, ``lr_multiplier``, ``engine``, ``device`` and ``progress``.
    2. **Processes**, where a ``joblib.parallel_config`` with more than one job is active: workers on this
       machine, with any of joblib's backends. For pairs that only run eagerly, as much is gained as there
       are cores.
    3. One after another, by one captured graph where the pairs of all seeds give its numbers.

    The log says why it is not threads.

    Parameters
    ----------
    make_pair
        Makes a new model and guide; every call makes the same structure.
    seeds
        One fit for each.
    data
        As for :func:`fit`.
    **options
        Those of :func:`fit`, except ``seed``.

    Returns
    -------
    list of Fit
        In the order of ``seeds``. Where they were fitted on threads, ``engine`` is ``"native"``, and
        ``steps_per_second`` counts the steps of all.

    Raises
    ------
    ValueError, TypeError, NonFiniteError
        As :func:`fit`.

    Examples
    --------
    >>> import torch, pyro_vae
    >>> def make_pair():
    ...     model = pyro_vae.models.VAE(torch.nn.Linear(2, 5), 2, "normal")
    ...     return model, pyro_vae.guides.AmortizedNormal(model, torch.nn.Linear(5, 16))
    >>> fits = pyro_vae.sweep(make_pair, range(3), torch.randn(256, 5), epochs=2, progress=False)
    >>> [fitted.seed for fitted in fits]
    [0, 1, 2]
    """
    _check_sweep(make_pair, seeds, options)
    seeds = list(seeds)
    try:
        return fit_together(make_pair, seeds, data, options)
    except CannotError as reason:
        logger.info("each seed is fitted by itself: %s", reason)
    return _fit_apart(make_pair, seeds, data, options)


def _check_sweep(make_pair: Any, seeds: Any, options: dict[str, Any]) -> None:
    """Whatever can be said before the first fit, however the fits will run."""
    if not callable(make_pair) or isinstance(make_pair, torch.nn.Module):
        raise TypeError(f"make_pair is {kind(make_pair)}; give a function that makes a model and a guide")
    if "seed" in options:
        raise TypeError("sweep takes seeds, one for each fit, and not seed")
    if options.get("checkpoint") is not None:
        raise TypeError("sweep takes no checkpoint; give each fit its own, fit(..., seed=0, checkpoint=...)")
    if not isinstance(seeds, Iterable) or isinstance(seeds, bytes):
        raise TypeError(f"seeds is {brief(seeds)}; give one seed for each fit, such as range({brief(seeds)})")
    seeds = list(seeds)
    if not seeds:
        raise ValueError("seeds is empty; give at least one seed")
    for i, seed in enumerate(seeds):
        check_numbers(**{f"seeds[{i}]": seed})
    known = parameters_of(fit)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{name!r} is no option of fit; {hint}")
    check_options(options)
    resolve_device(options.get("device", "auto"))


def _fit_apart(make_pair: MakePair, seeds: list[int], data: Any, options: dict[str, Any]) -> list[Fit]:
    """Each by :func:`fit`: in joblib's processes if somebody configured more than one, else one after
    another."""
    import joblib

    if options.get("callbacks") or not has_workers():
        fits: list[Fit] = []
        for seed in seeds:
            pair = seeded_pair(make_pair, seed)
            require_new(pair, [(done.model, done.guide) for done in fits])
            fits.append(fit(*pair, data, seed=seed, **options))
        return fits
    with tempfile.TemporaryDirectory(prefix="pyro-vae-sweep-") as folder:
        places = [Path(folder) / str(i) for i in range(len(seeds))]
        joblib.Parallel()(
            joblib.delayed(_fit_into)(
                place, torch.get_default_dtype(), make_pair, seed, data, {**options, "progress": False}
            )
            for place, seed in zip(places, seeds, strict=True)
        )
        pairs = [seeded_pair(make_pair, seed) for seed in seeds]
        return [Fit.load(place, *pair) for place, pair in zip(places, pairs, strict=True)]


def _fit_into(
    place: Path, dtype: torch.dtype, make_pair: MakePair, seed: int, data: Any, options: dict[str, Any]
) -> None:
    """In a worker: the fit goes to the parent by a folder, since what a pair holds need not be picklable."""
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)
    fit(*seeded_pair(make_pair, seed), data, seed=seed, **options).save(place)
