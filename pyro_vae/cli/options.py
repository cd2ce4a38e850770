"""The options of the commands: what the help says of them, and what the shell completes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_vae.cli.choices import completion, listed


def _setting(
    *flags: str, tell: str, default: object = None, choices: str | None = None, metavar: str | None = "NAME"
) -> Any:
    """An option of a study. What is not typed comes from --config, else from :class:`StudyConfig`, so that
    its default here is None and what the help shows is text."""
    told = tell if choices is None else f"{tell}: {listed(choices)}"
    if default is not None:
        told += rf" [dim]\[default: {default}][/dim]"
    return typer.Option(
        *flags,
        help=told,
        metavar=metavar,
        autocompletion=None if choices is None else completion(choices),
    )


Data = Annotated[
    str | None,
    typer.Argument(
        help="A data set by name (digits, mnist, fashion-mnist, kmnist), a file (.npy .npz .csv "
        ".parquet), or with --data a program of yours: module:function",
        autocompletion=completion("data"),
    ),
]
ProgramData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="The data of your program: a name or a file",
        autocompletion=completion("data"),
    ),
]
Scales = Annotated[
    list[str] | None,
    _setting(
        "--scale",
        "-s",
        tell="A scale map, once for each guide",
        default="logvar logstd softplus",
        choices="scale",
    ),
]
Scale = Annotated[
    list[str] | None, _setting("--scale", "-s", tell="A scale map", default="softplus", choices="scale")
]
Guides = Annotated[
    list[str] | None,
    _setting("--guide", "-g", tell="A family, once for each guide", default="normal", choices="guide"),
]
Guide = Annotated[
    list[str] | None, _setting("--guide", "-g", tell="Its family", default="normal", choices="guide")
]
Objective = Annotated[str | None, _setting(tell="What is minimized", default="elbo", choices="objective")]
Particles = Annotated[
    int | None,
    _setting(metavar="N", tell="Draws behind the objective, per observation", default="1; iwae, renyi: 5"),
]
Seeds = Annotated[int | None, _setting(metavar="N", tell="Fits per guide", default=3)]
FitSeeds = Annotated[
    int | None, _setting("--seeds", metavar="N", tell="How often the guide is fitted", default=1)
]
Epochs = Annotated[int | None, _setting(metavar="N", tell="Passes over the data, per fit", default=100)]
BatchSize = Annotated[int | None, _setting(metavar="N", tell="Observations per step", default=64)]
Rate = Annotated[float | None, _setting(metavar="X", tell="Learning rate of Adam", default=0.005)]
Schedule = Annotated[str | None, _setting(tell="Of the learning rate", default="cosine", choices="schedule")]
Activation = Annotated[str | None, _setting(tell="Between layers", default="silu", choices="activation")]
Standardized = Annotated[
    bool | None,
    _setting(
        "--standardize/--no-standardize",
        metavar=None,
        tell="Whether the encoder sees standardized features",
        default=True,
    ),
]
LatentDim = Annotated[int | None, _setting(metavar="N", tell="Size of z", default=8)]
Hidden = Annotated[
    list[int] | None,
    _setting(metavar="N", tell="Size of a hidden layer, once for each", default="128 128"),
]
InitScale = Annotated[float | None, _setting(metavar="X", tell="σ that every guide starts at", default=1.0)]
HeldOut = Annotated[
    float | None, _setting(metavar="X", tell="Share of the data that no fit sees", default=0.2)
]
Draws = Annotated[
    int | None, _setting(metavar="N", tell="Importance draws per held-out observation", default=1000)
]
Gaps = Annotated[
    int | None,
    _setting(
        "--gap-observations", metavar="N", tell="Held-out observations whose best q is sought", default=32
    ),
]
Device = Annotated[str | None, _setting(tell="Where: also cuda:1, …", default="auto", choices="device")]
Root = Annotated[Path | None, typer.Option(metavar="PATH", help="Folder with the data set's IDX files")]
Likelihood = Annotated[
    str | None, _setting(tell="Instead of the one that the data suggest", choices="likelihood")
]
Label = Annotated[str | None, typer.Option(metavar="NAME", help="Column of a table that holds labels")]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Columns of a table to model, once for each or between commas"),
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether a .csv file's first line names the columns"),
]
Separator = Annotated[
    str | None, typer.Option(metavar="NAME", help="Between the fields of a .csv file: , ; tab space")
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="TOML file, or run.json of a run, with any of these; options win"),
]
Out = Annotated[Path | None, _setting(metavar="PATH", tell="Folder of the run", default="runs/DATA")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/digits")]
Interrupted = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/digits")]
OtherDraws = Annotated[
    int | None, _setting("--draws", metavar="N", tell="Importance draws", default="the run's")
]
OtherGaps = Annotated[
    int | None,
    _setting(
        "--gap-observations", metavar="N", tell="Observations whose best q is sought", default="the run's"
    ),
]
RefinedFile = Annotated[
    Path | None,
    typer.Option("--refined", metavar="FILE", help="Write draws of the refined posteriors, for ArviZ"),
]
