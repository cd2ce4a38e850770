"""What a study found."""

import html
import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pyro_vae.arguments import kind, require_path
from pyro_vae.report.findings import Findings
from pyro_vae.report.verdict import Verdict, reach_verdict
from pyro_vae.run_folder import open_run
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.saved import read_findings

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Study:
    """What was asked, where it lies, and what was found."""

    config: StudyConfig
    folder: Path
    findings: Findings

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run back from its folder. Nothing in it is unpickled or executed.

        Raises
        ------
        FileNotFoundError
            If the folder holds no run.
        ValueError
            If the run is not finished, was written by a newer version, or a file of it is damaged.
        """
        require_path("folder", folder)
        run = open_run(folder)
        record = run.read_record()
        config = StudyConfig.from_record(record["config"])
        return cls(config, run.root, read_findings(run, record))

    @property
    def diagnostics(self) -> "xr.Dataset":
        """Evidence, ELBO, k̂ and more over (guide, seed, observation), in nats."""
        return self.findings.diagnostics

    @property
    def posteriors(self) -> "dict[str, xr.DataTree]":
        """By guide, the first seed's posterior draws for some held-out observations, for ArviZ."""
        return dict(self.findings.posteriors)

    @property
    def comparison(self) -> "pd.DataFrame | None":
        """From :func:`pyro_vae.compare`; None if fewer than two guides were fitted."""
        return self.findings.comparison

    @property
    def answer(self) -> str:
        """What the comparison says, in a sentence or two."""
        return self.findings.answer

    @cached_property
    def verdict(self) -> Verdict:
        """Which guide, whether that is decided, what can be believed, and what to run next."""
        more, longer = 2 * self.config.seeds, 2 * self.config.epochs
        return reach_verdict(
            self.findings,
            run=shlex.quote(str(self.folder)),
            longer=replace(self.config, epochs=longer).command(out=f"{self.folder}-{longer}-epochs"),
            more_seeds=replace(self.config, seeds=more).command(out=f"{self.folder}-{more}-seeds"),
        )

    @property
    def failures(self) -> dict[str, str]:
        """Guides that could not be fitted, and why; they are in nothing else."""
        return dict(self.findings.failures)

    def summary(self) -> "pd.DataFrame":
        """One row per guide, best first: see :meth:`pyro_vae.report.findings.Findings.summary`."""
        return self.findings.summary()

    def belief(self) -> "pd.DataFrame":
        """What can be believed of each guide: see :meth:`pyro_vae.report.findings.Findings.belief`."""
        return self.findings.belief()

    def plot(self) -> "Figure":
        """The paired evidence differences as a matplotlib figure; of a single guide its training."""
        from pyro_vae import plots

        if self.comparison is None:
            return plots.plot_training(self.findings.histories)
        return plots.plot_evidence(self.findings.by_guide(self.findings.evidence))

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict above the tables."""
        words = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.verdict.sentences)
        return f"{words}{self.summary().to_html()}{self.belief().to_html()}"

    def __repr__(self) -> str:
        guides = ", ".join(map(str, self.diagnostics["guide"].values))
        about = f"{self.config.data}; {guides}; {self.config.seeds} seeds; {self.folder}"
        return f"Study({about}): {self.answer}"


def require_study(study: Any) -> None:
    """Raise a TypeError unless ``study`` is one."""
    if not isinstance(study, Study):
        raise TypeError(f"study is {kind(study)}; give a Study, such as Study.load(folder)")
