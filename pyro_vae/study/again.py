"""The parts of a finished run that can be made anew: its diagnosis, its figures and page."""

import dataclasses
from pathlib import Path

from pyro_vae.run_folder import RunFolder, writing
from pyro_vae.study.completion import check_data, draw_report, examine_and_write, says_how_to_go_on
from pyro_vae.study.phases import prepare
from pyro_vae.study.result import Study, require_study


def diagnose_again(
    study: Study, *, draws: int | None = None, gap_observations: int | None = None, progress: bool = True
) -> Study:
    """Diagnose the fits of a finished run once more, and write diagnostics, comparison and report anew.

    Until everything is measured the run stays what it was: whoever interrupts it has the old diagnosis, and
    may ask for another.

    Parameters
    ----------
    study
        From :meth:`Study.load`.
    draws, gap_observations
        As in :class:`StudyConfig`; by default those of the run.
    progress
        As in :func:`run_study`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the data are not where they were or the fits do not suit them.
    """
    require_study(study)
    asked = {"draws": draws, "gap_observations": gap_observations}
    changes = {name: value for name, value in asked.items() if value is not None}
    config = dataclasses.replace(study.config, **changes)  # type: ignore[arg-type]
    folder = RunFolder(study.folder)
    with writing(folder), says_how_to_go_on(folder):
        record = folder.read_record()
        material = prepare(config, device=str(record["device"]))
        check_data(material, record, folder)
        return examine_and_write(material, folder, study.findings.guides, study.failures, progress)


def report_again(study: Study) -> Path:
    """Draw figures and page of a run anew from what lies in its folder; returns the page's path."""
    require_study(study)
    folder = RunFolder(study.folder)
    with writing(folder):
        try:
            return draw_report(study, folder)
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"the run in {folder.root} cannot be drawn ({error!r:.80}); its files do not fit together: "
                "it is damaged or foreign"
            ) from error
