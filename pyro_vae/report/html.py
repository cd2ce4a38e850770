"""A run as one self-contained page: opens from disk, needs no network."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyro_vae.report.pictures import Picture

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["render_page"]

TABLE_NOTE = (
    "Log evidence, ELBO, KL and the difference to the best guide in nats per held-out observation; the 95% "
    "interval is over seeds, paired, and holds for all pairs of guides jointly. k̂ above its threshold says "
    "that importance sampling from the guide cannot be relied on for that observation; k̂ grows with the "
    "latent dimension."
)


def render_page(
    *,
    title: str,
    answer: str,
    summary: "pd.DataFrame",
    pictures: Sequence[Picture],
    config: Mapping[str, Any],
    failures: Iterable[str] = (),
) -> str:
    """The page as HTML text; every word is escaped, every figure embedded with its caption as alternative
    text."""
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("pyro_vae", "report"), autoescape=True).get_template("page.html")
    return page.render(
        title=title,
        answer=answer,
        columns=list(summary.columns),
        rows=[[str(name), *(_shown(cell) for cell in row)] for name, row in summary.iterrows()],
        table_note=TABLE_NOTE,
        figures=pictures,
        config=config,
        failures=list(failures),
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return str(value)
