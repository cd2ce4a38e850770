"""End a run, once or anew: measure its fits, write the findings, draw figures and page."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_vae.arguments import require_path
from pyro_vae.report.html import render_page
from pyro_vae.report.pictures import draw_figures
from pyro_vae.report.readings import read_findings_aloud, read_together
from pyro_vae.run_folder import RunFolder, now, writing
from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.netcdf import write_netcdf
from pyro_vae.study.fits import load_fit
from pyro_vae.study.material import Material, load_material
from pyro_vae.study.measures import refined_tree
from pyro_vae.study.phases import examine
from pyro_vae.study.result import Study, require_study
from pyro_vae.study.saved import Parts, write_findings


def draw_report(study: Study, folder: RunFolder) -> Path:
    """Draw the figures and the page; returns the page's path."""
    folder.figures.mkdir(exist_ok=True)
    page = render_page(
        title=f"pyro-vae: {study.config.data}",
        findings=study.findings,
        verdict=study.verdict,
        readings=read_together(read_findings_aloud(study.findings)),
        pictures=draw_figures(folder.figures, study.findings),
        command=study.config.command(out=study.folder),
        config=dataclasses.asdict(study.config),
        record=folder.read_record(),
    )
    write_whole(folder.report, page.encode(errors="backslashreplace"))
    return folder.report


def check_data(material: Material, record: Mapping[str, Any], folder: RunFolder) -> None:
    """Raise a ValueError if the data are not those of the run."""
    if (record.get("read") or {}).get("program") != material.account.get("program"):
        raise ValueError(
            f"the program {material.config.program} is not the one that the run in {folder.root} was made "
            "with; put it back as it was, or make a new run"
        )
    if record.get("data") != material.checksum:
        raise ValueError(
            f"the data {material.config.data!r} are not those that the run in {folder.root} was made with; "
            "put them back, or make a new run"
        )


def note_result(
    material: Material,
    folder: RunFolder,
    result: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> None:
    """Write down in the record how far the run is, what came of it, and when it was begun."""
    started = folder.read_record()["result"].get("started")
    begun = {"started": started} if isinstance(started, str) else {}
    folder.write_record(
        dataclasses.asdict(material.config),
        material.device,
        {**result, **begun},
        data=material.checksum,
        read=material.account,
        files=files,
    )


@contextmanager
def says_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    """Adds to an interruption what can be done next."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        untouched = f"the run in {folder.root} is as it was"
        resumable = f"`pyro-vae resume {shlex.quote(str(folder.root))}` goes on with it"
        error.add_note(untouched if _is_whole(folder) else resumable)
        raise


def _is_whole(folder: RunFolder) -> bool:
    try:
        return folder.report.is_file() and folder.read_record()["result"].get("status") == "done"
    except (OSError, ValueError):
        return False


def examine_and_write(
    material: Material, folder: RunFolder, guides: Sequence[str], failures: Mapping[str, str], progress: bool
) -> Study:
    """Measure the fits of these guides, and write what was found, with figures and page."""
    config = material.config
    parts = Parts(folder.parts, {"draws": config.draws, "gap_observations": config.gap_observations})
    findings = examine(material, folder, guides, failures, parts, progress=progress)
    study = Study(config, folder.root, findings)
    # from here on `resume` ends it, with the parts that are measured
    note_result(material, folder, {"status": "diagnosing"})
    folder.report.unlink(missing_ok=True)
    files = write_findings(folder, findings)
    result = {
        "status": "done",
        "verdict": study.verdict.as_dict(),
        "answer": study.answer,
        "image_shape": findings.image_shape,
        "failures": dict(findings.failures),
        "finished": now(),
    }
    note_result(material, folder, result, files)
    parts.clear()
    draw_report(study, folder)
    return study


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
        material = load_material(config, device=str(record["device"]))
        check_data(material, record, folder)
        return examine_and_write(material, folder, study.findings.guides, study.failures, progress)


def refined_again(study: Study, path: str | Path) -> Path:
    """Write draws of the refined posteriors of all held-out observations, of the guide that is ahead (else
    the first) and its first fit, as a tree for ArviZ; returns the file's path.

    Parameters
    ----------
    study
        From :meth:`Study.load`.
    path
        Of a new file, ``refined.nc``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is a file of that name, the data are not where they were, or the fits do not suit them.
    """
    require_study(study)
    require_path("path", path)
    target, folder = Path(path), RunFolder(study.folder)
    if target.exists():
        raise ValueError(f"refined is {target}, which is there already; name another file, or remove it")
    material = load_material(study.config, device=str(folder.read_record()["device"]))
    check_data(material, folder.read_record(), folder)
    guide = study.verdict.guide or study.findings.guides[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_netcdf(refined_tree(load_fit(material, folder, guide, 0), material, guide), target)
    return target


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
