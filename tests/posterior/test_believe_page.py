"""The page "Can I believe this posterior?" says what happens."""

import doctest
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.arviz


def test_every_line_of_the_page_runs():
    torch.set_default_dtype(torch.float32)  # what a user has
    page = Path(__file__).parents[2] / "docs" / "can-i-believe-this-posterior.md"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert tried > 15
    assert failed == 0
