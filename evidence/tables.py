"""The tables of docs/why_log_variance.md, made from evidence/results/, so that the page cannot drift from them.

    python -m evidence.tables    # writes them into the page
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evidence.experiment import Results

__all__ = ["PAGE", "TABLES", "write_page", "written"]

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "why_log_variance.md"
BLOCK = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
