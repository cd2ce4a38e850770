"""What a study is asked to do: from Python, from a command line, from a file, and back."""

import dataclasses
import difflib
import itertools
import math
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.arguments import brief, kind
from pyro_vae.guides import scales
from pyro_vae.guides.heads import raw_value
from pyro_vae.models.networks import ACTIVATIONS
from pyro_vae.run_folder import read_run_record
from pyro_vae.storage.records import LONGEST, read_bytes
from pyro_vae.study.costs import check_counts, check_weights

SCHEDULES = ("cosine", "constant")

FAMILIES = ("normal", "multivariate", "flow")
OBJECTIVES = ("elbo", "iwae", "renyi", "stl")

OF_THE_NETWORKS = ("guides", "latent_dim", "hidden", "activation", "standardize", "init_scale", "likelihood")
"""What a program of the user's decides by itself."""

NAMED_ONCE = {"scales": "scale", "guides": "guide"}
"""Settings whose option, given again and again, names one of them."""

BEFORE_0_2 = {"schedule": "constant", "activation": "relu", "standardize": False}
"""What runs of version 0.1 did not name."""

LEAST = {
    "seeds": 1,
    "epochs": 1,
    "batch_size": 1,
    "latent_dim": 1,
    "draws": 100,
    "gap_observations": 0,
    "particles": 1,
}
"""The smallest value of each integer."""


@dataclass(frozen=True)
class StudyConfig:
    """What a study is asked to do; the defaults are those of ``pyro-vae compare digits``.

    Parameters
    ----------
    data
        A name that :func:`pyro_vae.data.load` knows, or a path.
    scales
        Names of scale maps, one guide each.
    guides
        Families, one guide each for every scale map: ``"normal"``, ``"multivariate"``, ``"flow"``.
    seeds
        How often every guide is fitted: seeds 0, 1, …
    epochs, batch_size, lr, schedule
        Of each fit; the rate is constant, or by ``"cosine"`` brought to zero at the end.
    objective, particles
        What is minimized: ``"elbo"``, ``"iwae"``, ``"renyi"`` (α = ½) or ``"stl"``; with how many draws of
        each observation's latents, by default 1, and 5 where a bound gains by them (iwae, renyi).
    latent_dim, hidden, activation
        Size of z; sizes of the encoder's hidden layers (the decoder's are the same, backwards), and what
        follows each.
    standardize
        Whether the encoder sees every feature in units of the training data's mean and standard deviation.
        The model does not: it explains the data as they are.
    init_scale
        σ that every guide starts at.
    held_out
        Share of the observations that no fit sees.
    draws
        Importance draws for each held-out observation.
    gap_observations
        Held-out observations for which each guide's first fit is compared with the best q of its family, to
        split what it loses into approximation and amortization; 0 for none.
    device
        As in :func:`~pyro_vae.svi.fitting.fit`.
    root
        Folder of a data set's files, where it needs one.
    likelihood
        Name of a likelihood in place of the one that the data suggest.
    label, columns, header, separator
        Of a table in a file, as :func:`pyro_vae.data.load` takes them.
    program
        ``"module:function"`` or ``"file.py:function"`` in place of the built-in model and guide:
        ``function(scale, x)`` makes a model and a guide for a scale map and the rows to train on. What that
        decides (the families, sizes, likelihood) is no setting of the study then.

    Raises
    ------
    ValueError
        If a value cannot be used; the message names it.

    Examples
    --------
    >>> StudyConfig(seeds=5).scales
    ('logvar', 'logstd', 'softplus')
    """

    data: str = "digits"
    scales: tuple[str, ...] = ("logvar", "logstd", "softplus")
    seeds: int = 3
    epochs: int = 100
    batch_size: int = 64
    lr: float = 5e-3
    schedule: str = "cosine"
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "silu"
    standardize: bool = True
    init_scale: float = 1.0
    held_out: float = 0.2
    draws: int = 1000
    gap_observations: int = 32
    device: str = "auto"
    root: str | None = None
    likelihood: str | None = None
    label: str | None = None
    columns: tuple[str, ...] | None = None
    header: bool | None = None
    separator: str | None = None
    guides: tuple[str, ...] = ("normal",)
    objective: str = "elbo"
    particles: int | None = None
    program: str | None = None

    def __post_init__(self) -> None:
        for name in ("data", "device", "root", "likelihood", "label", "separator", "program"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("data", "device")):
                raise ValueError(f"{name} is {brief(value)}; give text")
        for name in ("header", "standardize"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (value is not None or name != "header"):
                raise ValueError(f"{name} is {brief(value)}; give true or false")
        choices_of = {"schedule": SCHEDULES, "activation": tuple(ACTIVATIONS), "objective": OBJECTIVES}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(choices)}")
        named = self.columns if isinstance(self.columns, tuple) else ("",)
        if self.columns is not None and not (named and all(isinstance(n, str) and n for n in named)):
            raise ValueError(f"columns is {self.columns!r}; give the names of columns, such as ('a', 'b')")
        self._check_guides()
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is None and name == "particles":
                continue
            if not _is_integer(value) or value < least:
                raise ValueError(f"{name} is {brief(value)}; give an integer of at least {least}")
        sizes = self.hidden if isinstance(self.hidden, tuple) else ()
        if not sizes or any(not _is_integer(size) or size < 1 for size in sizes):
            raise ValueError(
                f"hidden is {self.hidden!r}; give the sizes of the hidden layers, such as (128, 128)"
            )
        for name in ("lr", "init_scale"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {brief(value)}; give a positive number")
        for name in self.scales:
            raw_value(scales.get(name), self.init_scale)  # raises here, not in the first fit
        if not _is_number(self.held_out) or not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out!r}; give a share between 0 and 1, such as 0.2")
        check_counts(self.seeds, len(self.arms), self.draws)
        check_weights(self.hidden, self.latent_dim)

    def _check_guides(self) -> None:
        for setting, names, example in (
            ("scales", scales.names(), "logvar"),
            ("guides", FAMILIES, "normal"),
        ):
            given = getattr(self, setting)
            if not isinstance(given, tuple) or not all(isinstance(name, str) for name in given):
                raise ValueError(
                    f"{setting} is {brief(given)}; give a tuple of names, such as ({example!r},)"
                )
            if not given:
                raise ValueError(f"{setting} is empty; name at least one of {', '.join(names)}")
            repeated = sorted({name for name in given if given.count(name) > 1})
            if repeated:
                raise ValueError(
                    f"{setting} names {repeated[0]!r} twice; a guide is compared with others, not with itself"
                )
        for name in self.scales:
            scales.get(name)
        for name in self.guides:
            if name not in FAMILIES:
                raise ValueError(f"guides names {name!r}; give some of {', '.join(FAMILIES)}")
        if self.latent_dim == 1 and "flow" in self.guides:
            raise ValueError(
                "guides names 'flow' and latent_dim is 1; give a latent_dim of at least 2: in one dimension "
                "the flow is a Normal"
            )
        if self.program is None:
            return
        for name in OF_THE_NETWORKS:
            default = next(field.default for field in dataclasses.fields(self) if field.name == name)
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, and {self.program} makes model and guide by itself; "
                    f"leave {name} out"
                )

    @property
    def arms(self) -> dict[str, tuple[str, str]]:
        """What is compared: by the name of each guide, its family and its scale map.

        Examples
        --------
        >>> StudyConfig(scales=("logvar",), guides=("normal", "flow")).arms
        {'normal': ('normal', 'logvar'), 'flow': ('flow', 'logvar')}
        """
        pairs = itertools.product(self.guides, self.scales)
        if len(self.guides) == 1:
            return {scale: (family, scale) for family, scale in pairs}
        if len(self.scales) == 1:
            return {family: (family, scale) for family, scale in pairs}
        return {f"{family}-{scale}": (family, scale) for family, scale in pairs}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "StudyConfig":
        """From plain values, as a file or a command line has them: lists for tuples.

        Raises
        ------
        ValueError
            If there is no such setting, or its value cannot be used.

        Examples
        --------
        >>> StudyConfig.from_mapping({"scales": ["logvar", "softplus"], "epochs": 10}).epochs
        10
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"values is {kind(values)}; give settings by name, {{'epochs': 10}}")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
                raise ValueError(f"{name!r} is no setting of a study; {hint}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> "StudyConfig":
        """From the ``run.json`` of a run: what one of an older version does not name was otherwise then.

        Examples
        --------
        >>> StudyConfig.from_record({"data": "digits"}).activation
        'relu'
        """
        return cls.from_mapping({**BEFORE_0_2, **values})

    def command(self, out: str | Path | None = None) -> str:
        """The command that runs this study, with every setting that is not the default.

        Examples
        --------
        >>> StudyConfig(scales=("logvar", "abs"), lr=1e-3).command(out="runs/two")
        'pyro-vae compare digits --scale logvar --scale abs --lr 0.001 --out runs/two'
        """
        words = ["pyro-vae", "compare", *([self.data] if self.program is None else [self.program])]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            option = f"--{NAMED_ONCE.get(field.name, field.name).replace('_', '-')}"
            if field.name == "program" or (self.program is None and field.name == "data"):
                continue
            if value == field.default and field.name != "data":
                continue
            if isinstance(value, bool):
                words.append(option if value else f"--no-{field.name}")
            else:
                for item in value if isinstance(value, tuple) else [value]:
                    words += [option, str(item)]
        return shlex.join([*words, *(["--out", str(out)] if out is not None else [])])


def read_config(path: str | Path) -> dict[str, Any]:
    """Settings from a TOML file, or from the ``run.json`` of an earlier run.

    A TOML file names what the options of the command do: ``data = "digits"``, ``scales = ["logvar", "abs"]``,
    ``latent-dim = 4`` (or ``latent_dim``), ``out = "runs/two"``, ``json = true``. Raises FileNotFoundError if
    there is no such file; ValueError if it cannot be read.

    Returns
    -------
    dict
        Unchecked values for :meth:`StudyConfig.from_mapping`, and possibly ``out`` and ``json``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; --config takes a TOML file or a run.json")
    try:
        if path.suffix == ".json":
            return {**BEFORE_0_2, **read_run_record(path, strict=False)["config"]}
        values = tomllib.loads(read_bytes(path, at_most=LONGEST).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    settings = {option: setting for setting, option in NAMED_ONCE.items()}
    names = {name: name.replace("-", "_") for name in values}
    return {settings.get(name, name): values[given] for given, name in names.items()}


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and float(value) == value
    except OverflowError:
        return False
