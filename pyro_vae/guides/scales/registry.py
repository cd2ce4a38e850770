"""Scale maps by name."""

import difflib
import inspect
from typing import Any

import torch

from pyro_vae.arguments import brief
from pyro_vae.guides.scales.base import ScaleMap
from pyro_vae.guides.scales.bounded import Bounded, SoftClip
from pyro_vae.guides.scales.explinear import ExpLinear
from pyro_vae.guides.scales.exponential import LogStd, LogVar
from pyro_vae.guides.scales.floor import Floor
from pyro_vae.guides.scales.hard import Abs, Clamp
from pyro_vae.guides.scales.softplus import Softplus, SoftplusVar
from pyro_vae.guides.scales.stdplus import StdPlus

_MAPS: dict[str, type[ScaleMap]] = {}


def get(name: str | ScaleMap, *, min_scale: float | None = None, **options: Any) -> ScaleMap:
    """The scale map of a name, with its options.

    Parameters
    ----------
    name : str or ScaleMap
        A registered name; a map is given back as it is.
    min_scale : float, optional
        A floor under the map: ``Floor(map, min_scale)``.
    **options
        The map's own options, such as ``beta`` of ``"softplus"``.

    Returns
    -------
    ScaleMap

    Raises
    ------
    ValueError
        If no map has that name, or an option has a value out of its range.
    TypeError
        If the map has no such option, or ``name`` is neither a name nor a map.

    Examples
    --------
    >>> get("softplus")
    Softplus(beta=1.0)
    >>> get("bounded", low=0.01, high=1.0)
    Bounded(low=0.01, high=1.0)
    >>> get("logvar", min_scale=1e-4)
    Floor(map=LogVar(), min_scale=0.0001)
    """
    if isinstance(name, ScaleMap):
        if options:
            raise TypeError(f"{name!r} is a map already; give it without {', '.join(options)}")
        scale_map = name
    else:
        scale_map = _class_of(name)(**_known_options(name, options))
    return scale_map if min_scale is None else Floor(scale_map, min_scale)


def names() -> list[str]:
    """The registered names, built-in maps first.

    Examples
    --------
    >>> names()[:3]
    ['logvar', 'logstd', 'softplus']
    """
    return list(_MAPS)


def register(name: str, cls: type[ScaleMap]) -> None:
    """Give a map class a name, under which :func:`get` and everything with a ``scale=`` argument find it.

    Parameters
    ----------
    name : str
        A new name.
    cls : type[ScaleMap]
        A subclass of :class:`ScaleMap` whose options all have defaults.

    Raises
    ------
    TypeError
        If ``name`` is not text, ``cls`` is not a subclass of ScaleMap, or an option lacks a default.
    ValueError
        If the name is empty or belongs to another class.

    Examples
    --------
    >>> class PowerOfTwo(ScaleMap):
    ...     def _log_scale(self, raw):
    ...         return raw * 0.6931471805599453
    ...     def _raw(self, scale):
    ...         return scale.log2()
    >>> register("power-of-two", PowerOfTwo)  # doctest: +SKIP
    >>> get("power-of-two")  # doctest: +SKIP
    PowerOfTwo()
    >>> register("softplus", PowerOfTwo)
    Traceback (most recent call last):
        ...
    ValueError: register: the name 'softplus' belongs to Softplus. Choose another.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {brief(name)}; give text")
    if not name:
        raise ValueError("name is ''; give one that is not empty")
    if not (isinstance(cls, type) and issubclass(cls, ScaleMap)):
        raise TypeError(f"cls is {brief(cls)}; give a subclass of ScaleMap")
    required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    if required:
        raise TypeError(
            f"register: get({name!r}) must work without options, but {cls.__name__} requires "
            f"{', '.join(required)}. Give each a default."
        )
    known = _MAPS.get(name)
    # A class defined again, as notebooks do, replaces its former self.
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"register: the name {name!r} belongs to {known.__name__}. Choose another.")
    _MAPS[name] = cls


def table() -> list[dict[str, str]]:
    """The registered maps as rows of text, for documentation and the command line.

    Returns
    -------
    list of dict
        Each with ``name``, ``map`` (the class with its options' defaults), ``sigma`` (σ as a formula of raw),
        ``sigma_at_0`` (σ at raw = 0), ``slope_at_0`` (d log σ/draw there), ``range`` (of σ) and ``remark``.

    Examples
    --------
    >>> for key, text in table()[0].items():
    ...     print(f"{key}: {text}")
    name: logvar
    map: LogVar()
    sigma: exp(raw/2)
    sigma_at_0: 1
    slope_at_0: 0.5
    range: 0 to inf
    remark: the convention; KL gradient grows like σ²
    """
    zero = torch.zeros((), dtype=torch.float64)
    rows = []
    for name, cls in _MAPS.items():
        scale_map = cls()
        low, high = scale_map.bounds
        rows.append(
            {
                "name": name,
                "map": repr(scale_map),
                "sigma": scale_map.formula,
                "sigma_at_0": f"{scale_map(zero).item():.4g}",
                "slope_at_0": f"{scale_map.slope(zero).item():.4g}",
                "range": f"{low:g} to {high:g}",
                "remark": scale_map.remark,
            }
        )
    return rows


def _class_of(name: str) -> type[ScaleMap]:
    if isinstance(name, type) and issubclass(name, ScaleMap):
        raise TypeError(f"scale is the class {name.__name__}; call it, {name.__name__}(...)")
    if not isinstance(name, str):
        raise TypeError(f"scale is {brief(name)}; give a scale map or the name of one ({', '.join(_MAPS)})")
    if name not in _MAPS:
        close = difflib.get_close_matches(name.lower(), _MAPS)
        meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"no scale map is named {name!r}.{meant} The names are {', '.join(_MAPS)}.")
    return _MAPS[name]


def _known_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    known = list(inspect.signature(_MAPS[name]).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "takes no options"
        raise TypeError(f"the map {name!r} {takes}; give it without {', '.join(unknown)}")
    return options


for _cls in (LogVar, LogStd, Softplus, SoftplusVar, ExpLinear, StdPlus, Bounded, SoftClip, Clamp, Abs):
    register(_cls.name, _cls)
