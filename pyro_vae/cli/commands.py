"""What can be typed: the commands, their options, and what becomes of errors."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pyro_vae.arguments import printable
from pyro_vae.cli import output

FAILED = 1
BAD_ARGUMENT = 2
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _setting(*flags: str, tell: str, default: object) -> Any:
    """An option of a study. What is not typed comes from --config, else from :class:`StudyConfig`, so that
    its default here is None and what the help shows is text."""
    return typer.Option(*flags, help=rf"{tell} [dim]\[default: {default}][/dim]")


Data = Annotated[
    str | None,
    typer.Argument(help="A data set by name (digits, mnist, …) or a file: .npy .npz .csv .parquet"),
]
Scales = Annotated[
    list[str] | None,
    _setting("--scale", "-s", tell="A scale map, once per guide", default="logvar logstd softplus"),
]
Scale = Annotated[str | None, _setting("--scale", "-s", tell="A scale map", default="softplus")]
Seeds = Annotated[int | None, _setting(tell="Fits per guide", default=3)]
FitSeeds = Annotated[int | None, _setting("--seeds", tell="How often the guide is fitted", default=1)]
Epochs = Annotated[int | None, _setting(tell="Passes over the data, per fit", default=100)]
BatchSize = Annotated[int | None, _setting(tell="Observations per step", default=64)]
Rate = Annotated[float | None, _setting(tell="Learning rate of Adam", default=0.005)]
Schedule = Annotated[str | None, _setting(tell="Of the learning rate: cosine or constant", default="cosine")]
Activation = Annotated[str | None, _setting(tell="Between layers: silu, relu, tanh, …", default="silu")]
Standardized = Annotated[
    bool | None,
    _setting(
        "--standardize/--no-standardize", tell="Whether the encoder sees standardized features", default=True
    ),
]
LatentDim = Annotated[int | None, _setting(tell="Size of z", default=8)]
Hidden = Annotated[
    list[int] | None,
    _setting(tell="Size of a hidden layer, once for each", default="128 128"),
]
InitScale = Annotated[float | None, _setting(tell="σ that every guide starts at", default=1.0)]
HeldOut = Annotated[float | None, _setting(tell="Share of the data that no fit sees", default=0.2)]
Draws = Annotated[int | None, _setting(tell="Importance draws per held-out observation", default=1000)]
Gaps = Annotated[
    int | None,
    _setting("--gap-observations", tell="Held-out observations whose best q is sought", default=32),
]
Device = Annotated[str | None, _setting(tell="auto, cpu, cuda, cuda:1 or mps", default="auto")]
Root = Annotated[Path | None, typer.Option(help="Folder with the data set's IDX files")]
Likelihood = Annotated[str | None, typer.Option(help="Instead of the one that the data suggest")]
Label = Annotated[str | None, typer.Option(help="Column of a table that holds labels")]
Columns = Annotated[
    list[str] | None, typer.Option(help="Columns of a table to model, once for each or between commas")
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether a .csv file's first line names the columns"),
]
Separator = Annotated[str | None, typer.Option(help="Between the fields of a .csv file: , ; tab space")]
Config = Annotated[
    Path | None, typer.Option(help="TOML file, or run.json of a run, with any of these; options win")
]
Out = Annotated[Path | None, _setting(tell="Folder of the run", default="runs/DATA")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/digits")]
Interrupted = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/digits")]
OtherDraws = Annotated[int | None, _setting("--draws", tell="Importance draws", default="the run's")]
OtherGaps = Annotated[
    int | None,
    _setting("--gap-observations", tell="Observations whose best q is sought", default="the run's"),
]


@app.callback()
def about() -> None:
    """Variational autoencoder guides for Pyro: fit them, diagnose them, compare them.

    Exit codes: 0 done, 1 failed, 2 bad arguments or data.
    """


@app.command()
def compare(
    data: Data = None,
    scale: Scales = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    schedule: Schedule = None,
    latent_dim: LatentDim = None,
    hidden: Hidden = None,
    activation: Activation = None,
    standardize: Standardized = None,
    init_scale: InitScale = None,
    held_out: HeldOut = None,
    draws: Draws = None,
    gap_observations: Gaps = None,
    device: Device = None,
    root: Root = None,
    likelihood: Likelihood = None,
    label: Label = None,
    columns: Columns = None,
    header: Header = None,
    separator: Separator = None,
    config: Config = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Which guide explains held-out data better?

    Fits a guide for each scale map and seed, with equal initial weights, σ,
    batches and noise; compares the log evidence of held-out observations in pairs.

    \b
    [bold]Examples[/bold]
      pyro-vae compare digits
      pyro-vae compare digits -s logvar -s softplus-var --seeds 5
      pyro-vae compare mnist --root ~/mnist --epochs 20 --json
      pyro-vae compare --config study.toml --out runs/again
    """
    _run_study({}, locals())


@app.command()
def fit(
    data: Data = None,
    scale: Scale = None,
    seeds: FitSeeds = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    schedule: Schedule = None,
    latent_dim: LatentDim = None,
    hidden: Hidden = None,
    activation: Activation = None,
    standardize: Standardized = None,
    init_scale: InitScale = None,
    held_out: HeldOut = None,
    draws: Draws = None,
    gap_observations: Gaps = None,
    device: Device = None,
    root: Root = None,
    likelihood: Likelihood = None,
    label: Label = None,
    columns: Columns = None,
    header: Header = None,
    separator: Separator = None,
    config: Config = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Fit one guide, and say whether its posteriors can be believed.

    \b
    [bold]Examples[/bold]
      pyro-vae fit digits --out runs/softplus
      pyro-vae fit counts.csv --scale logvar --likelihood poisson
      pyro-vae fit iris.csv --label species
    """
    _run_study({"scales": ["softplus"], "seeds": 1}, locals())


@app.command()
def diagnose(
    run: Run, draws: OtherDraws = None, gap_observations: OtherGaps = None, as_json: AsJson = False
) -> None:
    """Can the posteriors of a run be believed?

    Without options it tells what the run has found. With --draws or
    --gap-observations the saved fits are diagnosed anew, and so is the report.

    \b
    [bold]Examples[/bold]
      pyro-vae diagnose runs/digits
      pyro-vae diagnose runs/digits --draws 10000 --json
    """
    from pyro_vae.study import Study, diagnose_again

    with _errors_as_sentences():
        study = Study.load(run)
        if draws is not None or gap_observations is not None:
            study = diagnose_again(study, draws=draws, gap_observations=gap_observations)
        output.show_diagnosis(study, as_json=as_json)


@app.command()
def resume(run: Interrupted, as_json: AsJson = False) -> None:
    """Go on with a run that was interrupted, to the same result.

    Fits that were finished stay; the one that was interrupted goes on from its
    last checkpoint. A run that is complete is shown.

    \b
    [bold]Example[/bold]
      pyro-vae resume runs/digits
    """
    from pyro_vae.study import resume_study

    with _errors_as_sentences():
        output.show_study(resume_study(run), as_json=as_json)


@app.command()
def report(run: Run, as_json: AsJson = False) -> None:
    """Draw the figures and the page of a run anew.

    \b
    [bold]Example[/bold]
      pyro-vae report runs/digits
    """
    from pyro_vae.study import Study, report_again

    with _errors_as_sentences():
        output.show_path(report_again(Study.load(run)), as_json=as_json)


@app.command()
def scales(as_json: AsJson = False) -> None:
    """The scale maps: names, σ as a function of the raw output, remarks.

    \b
    [bold]Example[/bold]
      pyro-vae scales
    """
    with _errors_as_sentences():
        output.show_scales(as_json=as_json)


def _run_study(defaults: dict[str, Any], options: dict[str, Any]) -> None:
    """Run what the command line asks for; below it counts the configuration file, below that ``defaults``."""
    from pyro_vae.study import StudyConfig, follow_study, run_study
    from pyro_vae.study.config import read_config
    from pyro_vae.svi.parallel.launch import is_follower, is_launched

    scale, root = options.pop("scale"), options.pop("root")
    options["scales"] = [scale] if isinstance(scale, str) else scale
    options["root"] = root and str(root)
    options["json"] = options.pop("as_json") or None
    config, overwrite = options.pop("config"), options.pop("overwrite")
    with _errors_as_sentences():
        asked = {} if config is None else read_config(config)
        asked |= {name: value for name, value in options.items() if value not in (None, [])}
        as_json, out = asked.pop("json", False), asked.pop("out", None)
        if "data" not in asked:
            raise ValueError("there is no data set; name one, such as digits, or give --config")
        chosen = StudyConfig.from_mapping(defaults | asked)
        if defaults and len(chosen.scales) > 1:
            raise ValueError(
                f"{config} names {len(chosen.scales)} scales, and fit takes one; "
                "choose it with --scale, or call pyro-vae compare"
            )
        if is_follower():
            follow_study(chosen)
        else:
            anew = {"overwrite": True} if overwrite else {}
            study = run_study(chosen, out=out, distributed=is_launched(), **anew)
            output.show_study(study, as_json=as_json)


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    from pyro_vae.svi import NonFiniteError, RankError

    try:
        yield
    except (NonFiniteError, RankError) as error:
        _stop(str(error), FAILED)
    except (ValueError, FileNotFoundError) as error:
        _stop(str(error), BAD_ARGUMENT)
    except OSError as error:
        _stop(_with_notes(f"{error.filename or 'the run'}: {error.strerror or error}", error), FAILED)
    except KeyboardInterrupt as error:
        _stop(_with_notes("interrupted", error), INTERRUPTED)


def _with_notes(sentence: str, error: BaseException) -> str:
    return "; ".join([sentence, *getattr(error, "__notes__", [])])


def _stop(sentence: str, code: int) -> NoReturn:
    print(printable(f"pyro-vae: {sentence}"), file=sys.stderr)
    raise typer.Exit(code)


class _PlainText(logging.Formatter):
    """Lines of the log, in which names of files do nothing to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _occupy_standard_streams() -> None:
    """Where one is closed, the next file that is opened would get its number, and what is meant for the
    terminal; and what a terminal's encoding does not have must not end the command."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """What the ``pyro-vae`` script calls."""
    _occupy_standard_streams()
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainText("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    follower = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one talks
    logging.getLogger("pyro_vae").setLevel(logging.ERROR if follower else logging.INFO)
    app()
