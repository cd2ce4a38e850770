"""Executes the notebooks of this folder in place; needs the packages nbclient and ipykernel.

python docs/notebooks/execute.py [NAME ...]
"""

import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SECONDS = 600


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel, which works in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = list(_joined(cell.outputs))
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def _joined(outputs: list[nbformat.NotebookNode]) -> Iterator[nbformat.NotebookNode]:
    """A stream in one piece, of a bar that was drawn again and again its last state, and no warnings about
    the machine that executed it."""
    for name, group in groupby(outputs, lambda output: output.get("name", "")):
        if not name:
            yield from group
            continue
        lines = "".join(output.text for output in group).split("\n")
        text = "\n".join(line.rsplit("\r", 1)[-1] for line in lines)
        if text.strip() and "IProgress not found" not in text:
            yield nbformat.v4.new_output("stream", name=name, text=text.strip() + "\n")


if __name__ == "__main__":
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(execute(path), path)
