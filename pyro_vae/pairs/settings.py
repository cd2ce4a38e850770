"""The plain numbers, flags and words on the modules of a pair: graphs freeze them, and they belong to a fit
beside its tensors."""

from typing import Any

from torch import nn

from pyro_vae.pairs.isolation import Program, modules_of


def settings_of(model: Program, guide: Program) -> dict[str, Any]:
    """Each by where it is.

    Examples
    --------
    >>> settings_of(nn.Dropout(0.25), print)
    {'model.training': True, 'model.p': 0.25, 'model.inplace': False}
    """
    return {where: vars(module)[name] for where, (module, name) in _places(model, guide).items()}


def set_settings(model: Program, guide: Program, settings: dict[str, Any]) -> None:
    """Give those that ``settings`` names their values."""
    for where, (module, name) in _places(model, guide).items():
        if where in settings:
            vars(module)[name] = settings[where]


def _places(model: Program, guide: Program) -> dict[str, tuple[nn.Module, str]]:
    """The module and the attribute of each."""
    roots = zip(("model", "guide"), modules_of(model, guide), strict=False)
    return {
        ".".join(filter(None, (tag, path, name))): (module, name)
        for tag, root in roots
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    }
