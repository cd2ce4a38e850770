"""Which device a fit runs on, and how many of the processor's threads."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from pyro_vae.arguments import brief

WORTH_A_SECOND_THREAD = 100e6
"""Floating-point operations of what is computed at once, such as a step of a fit, forward and backward.
Below, threads cost more to wait for each other than they save; on a machine that does other work as well they
wait up to twenty times as long as the step takes."""


def resolve_device(device: str | torch.device) -> torch.device:
    """The device by name; ``"auto"`` is CUDA where there is one and the CPU elsewhere.

    Apple's ``"mps"`` is used when asked for, not by itself: it has no float64, in which the diagnostics are
    computed. Raises ValueError if the name is none of these or this machine has no such device.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = torch.device("meta")
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {brief(device)}; give 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {brief(device)}, but torch {torch.__version__} sees no CUDA device here; use 'cpu'"
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {brief(device)}, but there are {torch.cuda.device_count()} CUDA devices here"
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device is {brief(device)}, but there is no Apple GPU here; use 'cpu' or 'auto'")
    return resolved


def making_tensors_on(device: torch.device | None) -> AbstractContextManager[object]:
    """Constants that a program makes on the way (``torch.zeros(8)``) lie on the device of its data, whatever
    the default device is; of no data (None), where that says.

    >>> with making_tensors_on(torch.device("meta")):
    ...     torch.zeros(8).device
    device(type='meta')
    """
    if device is None or torch.get_default_device() == device:
        return nullcontext()
    return torch.device(device)


def forked_streams() -> AbstractContextManager[None]:
    """Afterwards the random streams of the CPU and of all CUDA devices go on as if nothing had been drawn.

    ``torch.random.fork_rng()`` alone starts CUDA where nothing uses it, and warns of more than one device.

    >>> with forked_streams():
    ...     inside = torch.rand(3)
    >>> torch.equal(torch.rand(3), inside)
    True
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    forked: AbstractContextManager[None] = torch.random.fork_rng(devices=list(devices))
    return forked


def seed_streams(seed: int) -> None:
    """Seed the random streams of the CPU and of all other devices here.

    ``torch.manual_seed`` also leaves a note, with the whole stack of calls, for every kind of device that is
    not here, in case that it is used later.

    >>> seed_streams(0)
    >>> one = torch.rand(3)
    >>> seed_streams(0)
    >>> torch.equal(torch.rand(3), one)
    True
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """Use one thread inside where the ``flops`` operations done at once are few; then as many as before.

    Examples
    --------
    >>> with threads_for(1e6):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    try:
        if flops < WORTH_A_SECOND_THREAD:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
