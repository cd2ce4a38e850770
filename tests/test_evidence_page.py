"""The page about log variance says what the committed results say."""

import re

from evidence import tables
from evidence.run import EXPERIMENTS


def test_the_page_says_what_the_results_say() -> None:
    text, results = tables.PAGE.read_text(), tables.read_results()
    assert set(results) - {tables.LONG} == set(EXPERIMENTS)
    assert set(re.findall(r"<!-- evidence: (\w+) -->", text)) == set(tables.TABLES)
    assert tables.with_tables(text, results) == text, "python -m evidence.tables writes them anew"
    for name in EXPERIMENTS:
        assert f"../evidence/figures/{name}.png" in text
        assert (tables.HERE / "figures" / f"{name}.png").is_file()
