"""What can be typed: the commands."""

import logging
import os
from typing import Annotated

import typer

from pyro_vae.cli import output
from pyro_vae.cli.asking import run_asked
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
from pyro_vae.cli.terminal import PlainText, errors_as_sentences, occupy_standard_streams

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
    run_asked({}, locals())


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
    run_asked({"scales": ["softplus"], "seeds": 1}, locals())


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

    with errors_as_sentences():
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

    with errors_as_sentences():
        output.show_study(resume_study(run), as_json=as_json)


@app.command()
def report(run: Run, as_json: AsJson = False) -> None:
    """Draw the figures and the page of a run anew.

    \b
    [bold]Example[/bold]
      pyro-vae report runs/digits
    """
    from pyro_vae.study import Study, report_again

    with errors_as_sentences():
        output.show_path(report_again(Study.load(run)), as_json=as_json)


@app.command()
def scales(as_json: AsJson = False) -> None:
    """The scale maps: names, σ as a function of the raw output, remarks.

    \b
    [bold]Example[/bold]
      pyro-vae scales
    """
    with errors_as_sentences():
        output.show_scales(as_json=as_json)


def main() -> None:
    """What the ``pyro-vae`` script calls."""
    occupy_standard_streams()
    handler = logging.StreamHandler()
    handler.setFormatter(PlainText("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    follower = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one talks
    logging.getLogger("pyro_vae").setLevel(logging.ERROR if follower else logging.INFO)
    app()
