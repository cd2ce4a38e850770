"""The ``pyro-vae`` command."""

import dataclasses
import json
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from pyro_vae.study import Study

__all__ = ["app", "main"]

BAD_ARGUMENT = 2
FAILED = 1

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def about() -> None:
    """Variational autoencoder guides for Pyro: fit them, diagnose them, compare them."""


@app.command()
def compare(
    data: Annotated[
        str, typer.Argument(help="A data set by name (digits, mnist, …) or a file: .npy .npz .csv .parquet")
    ],
    scale: Annotated[
        list[str] | None,
        typer.Option("--scale", "-s", help="A scale map, once per guide  [default: logvar logstd softplus]"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits per guide")] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the data, per fit")] = 100,
    latent_dim: Annotated[int, typer.Option(help="Size of z")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of the run  [default: runs/DATA]")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the data set's IDX files")] = None,
    likelihood: Annotated[str | None, typer.Option(help="Instead of the one that the data suggest")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON")] = False,
) -> None:
    """Which guide explains held-out data better?

    Fits a guide for each scale map and seed, with equal initial weights, σ, batches and noise, and compares
    the log evidence of held-out observations in pairs.

    Examples:

        pyro-vae compare digits

        pyro-vae compare digits --scale logvar --scale softplus-var --seeds 5

        pyro-vae compare mnist --root ~/data/mnist --epochs 20 --json
    """
    from pyro_vae.study import StudyConfig, run_study
    from pyro_vae.svi import NonFiniteError

    asked = {"scales": tuple(scale) if scale else None, "likelihood": likelihood, "root": root and str(root)}
    try:
        config = StudyConfig(
            data=data,
            seeds=seeds,
            epochs=epochs,
            latent_dim=latent_dim,
            device=device,
            **{name: value for name, value in asked.items() if value is not None},  # type: ignore[arg-type]
        )
        study = run_study(config, out=out)
    except NonFiniteError as error:
        _stop(str(error), FAILED)
    except (ValueError, FileNotFoundError) as error:
        _stop(str(error), BAD_ARGUMENT)
    except OSError as error:
        _stop(f"{error.filename or 'the run'}: {error.strerror or error}", FAILED)
    if as_json:
        print(json.dumps(_as_data(study), indent=2))
    else:
        _print_study(study)


@app.command()
def scales() -> None:
    """The scale maps: their names, σ as a function of the raw output, and what to know of each."""
    from rich.table import Table

    from pyro_vae.guides import scales as maps

    table = Table(box=None, pad_edge=False)
    headings = {
        "name": "name",
        "sigma": "σ",
        "sigma_at_0": "σ(0)",
        "slope_at_0": "slope(0)",
        "remark": "remark",
    }
    for key, heading in headings.items():
        table.add_column(heading, no_wrap=key == "name", overflow="fold")
    for row in maps.table():
        table.add_row(*(row[key] for key in headings))
    console = _wide_console()
    console.print(table)
    console.print(
        "\nraw: what the encoder puts out; slope: d log σ / d raw, the speed of σ under an optimizer"
    )


def _print_study(study: "Study") -> None:
    from rich.table import Table

    seeds = study.config.seeds
    table = Table(
        title=f"{study.config.data}, held-out observations, {seeds} seed{'s' * (seeds > 1)}",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    summary = study.summary()
    table.add_column("guide", no_wrap=True)
    for column in summary.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in summary.iterrows():
        table.add_row(str(name), *(_shown(value) for value in row))
    console = _wide_console()
    console.print(table)
    console.print("evidence (log p(x)), ELBO, KL and difference to the best in nats per observation\n")
    console.print(study.answer, highlight=False, soft_wrap=True)
    for failure in study.failures.values():
        console.print(f"Failed: {failure}", highlight=False, soft_wrap=True)
    console.print(f"Everything is in {study.folder}", highlight=False, soft_wrap=True)


def _wide_console() -> "Console":
    """Standard output; where it is no terminal, wide enough for every table."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return str(value)


def _as_data(study: "Study") -> dict[str, Any]:
    """The study as JSON can hold it: what is not finite becomes null."""
    guides = {} if study.comparison is None else json.loads(study.comparison.to_json(orient="index"))
    return {
        "answer": study.answer,
        "config": dataclasses.asdict(study.config),
        "folder": str(study.folder),
        "summary": json.loads(study.summary().to_json(orient="index")),
        "comparison": guides,
        "failures": dict(study.failures),
    }


def _stop(sentence: str, code: int) -> NoReturn:
    print(f"pyro-vae: {sentence}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """What the ``pyro-vae`` script calls."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pyro_vae").setLevel(logging.INFO)
    app()
