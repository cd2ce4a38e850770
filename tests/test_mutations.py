"""The seeded faults of :mod:`tests.mutations` have not lost the lines that they change, nor their tests."""

from pathlib import Path

import pytest

from tests.mutations import FAULTS, Fault, place_of

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_has_its_line_and_its_tests(fault: Fault) -> None:
    place = place_of(fault, ROOT / "pyro_vae")
    assert place is not None
    assert place.read_text(encoding="utf-8").count(fault.right) == 1
    assert list((ROOT / "tests").rglob(f"{fault.tests}.py"))
