"""What can be typed: the commands, and what becomes of errors."""

import io
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pyro_vae.arguments import printable
from pyro_vae.cli import output
from pyro_vae.cli.options import (
    Activation,
    AsJson,
    BatchSize,
    Columns,
    Config,
    Data,
    Device,
    Draws,
    Epochs,
    FitSeeds,
    Gaps,
    Guide,
    Guides,
    Header,
    HeldOut,
    Hidden,
    InitScale,
    Interrupted,
    Label,
    LatentDim,
    Likelihood,
    Objective,
    OtherDraws,
    OtherGaps,
    Out,
    Overwrite,
    Particles,
    ProgramData,
    Rate,
    RefinedFile,
    Root,
    Run,
    Scale,
    Scales,
    Schedule,
    Seeds,
    Separator,
    Standardized,
)

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


def _tell_version(asked: bool) -> None:
    if asked:
        output.show_version()
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Variational autoencoder guides for Pyro: fit them, diagnose them, compare them.

    Exit codes: 0 done, 1 failed, 2 bad arguments or data.
    """


@app.command()
def compare(
    data: Data = None,
    program_data: ProgramData = None,
    scale: Scales = None,
    guide: Guides = None,
    objective: Objective = None,
    particles: Particles = None,
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

    Fits a guide for each scale map, family and seed, with equal initial
    weights, σ, batches and noise; compares the log evidence of held-out
    observations in pairs.

    A program of yours is called as function(scale, x), with the name of a
    scale map and the rows to train on, and returns a Pyro model and a guide.

    \b
    [bold]Examples[/bold]
      pyro-vae compare digits
      pyro-vae compare digits -s logvar -s softplus-var --seeds 5
      pyro-vae compare counts.csv -s softplus -g normal -g flow
      pyro-vae compare my_model.py:make_pair --data x.npy
      pyro-vae compare mnist --root ~/mnist --epochs 20 --json
      pyro-vae compare --config study.toml --out runs/again
    """
    _run_study({}, locals())


@app.command()
def fit(
    data: Data = None,
    program_data: ProgramData = None,
    scale: Scale = None,
    guide: Guide = None,
    objective: Objective = None,
    particles: Particles = None,
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
    run: Run,
    draws: OtherDraws = None,
    gap_observations: OtherGaps = None,
    refined: RefinedFile = None,
    as_json: AsJson = False,
) -> None:
    """Can the posteriors of a run be believed?

    Without options it tells what the run has found. With --draws or
    --gap-observations the saved fits are diagnosed anew, and so is the report.
    With --refined draws of the refined posteriors are written into a file.

    \b
    [bold]Examples[/bold]
      pyro-vae diagnose runs/digits
      pyro-vae diagnose runs/digits --draws 10000 --json
      pyro-vae diagnose runs/digits --refined refined.nc
    """
    from pyro_vae.study import Study, diagnose_again, refined_again

    with _errors_as_sentences():
        study = Study.load(run)
        if draws is not None or gap_observations is not None:
            study = diagnose_again(study, draws=draws, gap_observations=gap_observations)
        if refined is not None:
            output.show_refined(refined_again(study, refined), as_json=as_json)
            return
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

    root = options.pop("root")
    options["scales"], options["guides"] = options.pop("scale"), options.pop("guide")
    options["root"] = root and str(root)
    options["json"] = options.pop("as_json") or None
    config, overwrite = options.pop("config"), options.pop("overwrite")
    with _errors_as_sentences():
        options |= _program_and_data(options.pop("program_data"), options["data"])
        asked = {} if config is None else read_config(config)
        asked |= {name: value for name, value in options.items() if value not in (None, [])}
        as_json, out = asked.pop("json", False), asked.pop("out", None)
        if "data" not in asked:
            raise ValueError("there is no data set; name one, such as digits, or give --config")
        if defaults:
            _refuse_several(asked, config, options)
        chosen = StudyConfig.from_mapping(defaults | asked)
        if is_follower():
            follow_study(chosen)
        else:
            anew = {"overwrite": True} if overwrite else {}
            study = run_study(chosen, out=out, distributed=is_launched(), **anew)
            output.show_study(study, as_json=as_json)


def _program_and_data(data: str | None, given: str | None) -> dict[str, str | None]:
    """What the argument is, beside ``--data``: the program, or the data themselves."""
    is_program = given is not None and ":" in given and given.rpartition(":")[2].isidentifier()
    if is_program and data is None:
        raise ValueError(f"{given} is a program, and its data are not named; give them as --data x.npy")
    if data is None or given is None:
        return {"data": data if given is None else given, "program": None}
    if not is_program:
        raise ValueError(
            f"{given} and --data {data} are two data sets; give one of them, or a program of yours: "
            f"module:function --data {data}"
        )
    return {"data": data, "program": given}


def _refuse_several(asked: dict[str, Any], config: Path | None, options: dict[str, Any]) -> None:
    for setting, option in (("scales", "--scale"), ("guides", "--guide")):
        names = asked.get(setting)
        if isinstance(names, list | tuple) and len(names) > 1:
            where = (
                f"{option} is given {len(names)} times"
                if options.get(setting)
                else f"{config} names {len(names)} {setting}"
            )
            raise ValueError(
                f"{where} ({', '.join(map(str, names))}), and fit takes one; choose one by {option}, or call "
                "pyro-vae compare"
            )


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
    print(_between_words(printable(f"pyro-vae: {sentence}")), file=sys.stderr)
    raise typer.Exit(code)


class _PlainText(logging.Formatter):
    """Lines of the log, in which names of files do nothing to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(_between_words(printable(line)) for line in super().format(record).split("\n"))


def _between_words(line: str) -> str:
    """A line broken between words where a terminal is too narrow, which would break it anywhere."""
    if not sys.stderr.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


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
