"""Training flags and buffers of modules, also of those that plain functions hold where nobody finds them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def quiet_about_hooks() -> Iterator[None]:
    """Compiled modules warn that hooks for all modules meet them twice, which is no harm here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global")
        yield


@contextmanager
def meeting_modules(visit: Callable[[nn.Module], None]) -> Iterator[None]:
    """Calls ``visit`` with every module before it is first called inside, whoever holds it.

    Examples
    --------
    >>> import torch
    >>> layer, met = nn.Linear(2, 3), []
    >>> with meeting_modules(met.append):
    ...     _ = layer(torch.ones(2)), layer(torch.ones(2))
    >>> met == [layer]
    True
    """
    known: set[int] = set()

    def hook(module: nn.Module, _args: Any) -> None:
        if id(module) not in known:
            known.update(id(part) for part in module.modules())
            with _disable_current_modes():  # a tracer is not to see it
                visit(module)

    handle = register_module_forward_pre_hook(hook)
    try:
        with quiet_about_hooks():
            yield
    finally:
        handle.remove()


def is_frozen(module: nn.Module) -> bool:
    """Whether a user has frozen a module and put it into evaluation mode, which is meant to last.

    >>> is_frozen(nn.Linear(2, 3).requires_grad_(False).eval()), is_frozen(nn.Linear(2, 3).eval())
    (True, False)
    """
    parameters = list(module.parameters())
    return not module.training and bool(parameters) and not any(p.requires_grad for p in parameters)
