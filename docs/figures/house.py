"""Draws docs/images/house.svg: the rooms of the package and who imports whom, read from the source.

python docs/figures/house.py
"""

import ast
import sys
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

import pyro_vae

PICTURE = Path(__file__).parent.parent / "images" / "house.svg"
PACKAGE = Path(pyro_vae.__file__).parent

# Column and floor of each room. The arrows are not written down: they are the imports.
PLACES = {
    "cli": (1, 7),
    "study": (1, 6),
    "report": (0, 5),
    "run_folder": (1, 5),
    "data": (3, 5),
    "plots": (0, 4),
    "posterior": (0, 3),
    "svi": (2, 3),
    "models": (3, 3),
    "pairs": (0, 2),
    "storage": (1, 2),
    "graphs": (3, 1),
    "guides": (3, 2),
    "batches": (0, 1),
}
# Single files that every room may import: one strip below all the others, without arrows.
GROUND = (
    "arguments",
    "arrays",
    "copies",
    "devices",
    "figures",
    "naming",
    "older_arviz",
    "progress",
    "version",
)
WIDTH, HEIGHT, COLUMN, FLOOR, MARGIN = 260, 76, 310, 118, 16


def sources(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def rooms() -> list[str]:
    """The parts of the package, without the ground, its two entrances and the tests' set-up."""
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    return sorted(names - {"__init__", "__main__", "conftest", *GROUND})


def imports(room: str) -> set[str]:
    """The other rooms that a room imports, anywhere in its files."""
    found = set()
    for path in sources(room):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = {name.split(".")[1] for name in found if name.startswith("pyro_vae.")}
    return parts & {*rooms()} - {room}


def arrows() -> list[tuple[str, str]]:
    """Imports, without those that a longer way already shows."""
    direct = {room: imports(room) for room in rooms()}

    def reaches(start: str, end: str) -> bool:
        return any(middle == end or reaches(middle, end) for middle in direct[start])

    return [
        (upper, lower)
        for upper in sorted(direct)
        for lower in sorted(direct[upper])
        if not any(middle != lower and reaches(middle, lower) for middle in direct[upper])
    ]


def summary(room: str) -> str:
    """The first sentence of the room's docstring."""
    folder = PACKAGE / room
    text = (folder / "__init__.py" if folder.is_dir() else PACKAGE / f"{room}.py").read_text()
    return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("`", "").replace("\n", " ")


def corner(room: str) -> tuple[int, int]:
    column, floor = PLACES[room]
    top = max(floor for _, floor in PLACES.values())
    return MARGIN + column * COLUMN, MARGIN + (top - floor) * FLOOR


def box(room: str) -> str:
    x, y = corner(room)
    lines = textwrap.wrap(summary(room), 42, max_lines=3, placeholder=" …")
    text = "".join(
        f'<text x="{x + 12}" y="{y + 38 + 14 * i}" font-size="11.5" fill="#444">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#f3f6fa" stroke="#3b6ea5"/>'
        f'<text x="{x + 12}" y="{y + 20}" font-size="14" font-weight="bold" fill="#1d3f66">{room}</text>'
        f"{text}"
    )


def strip() -> str:
    """The ground: what each of its files is for."""
    y, width = MARGIN + max(floor for _, floor in PLACES.values()) * FLOOR, picture_width() - 2 * MARGIN
    lines = [textwrap.shorten(f"{name}: {summary(name)}", 95, placeholder=" …") for name in GROUND]
    text = "".join(
        f'<text x="{MARGIN + 12 + i // 4 * width // 2}" y="{y + 19 + 16 * (i % 4)}" font-size="11.5" '
        f'fill="#444">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{MARGIN}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" fill="#f7f7f7" '
        f'stroke="#999"/>{text}'
    )


def picture_width() -> int:
    return 2 * MARGIN + max(column for column, _ in PLACES.values()) * COLUMN + WIDTH


def arrow(upper: str, lower: str) -> str:
    (x1, y1), (x2, y2) = corner(upper), corner(lower)
    shift = 60 if x2 > x1 else -60 if x2 < x1 else 0
    start, end = x1 + WIDTH // 2 + shift, x2 + WIDTH // 2 - shift
    return (
        f'<line x1="{start}" y1="{y1 + HEIGHT}" x2="{end}" y2="{y2 - 3}" '
        'stroke="#3b6ea5" stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def svg() -> str:
    """The picture as text; the same source gives the same text."""
    missing = {*rooms()} ^ {*PLACES}
    if missing:
        raise ValueError(f"give PLACES the rooms of the package: {', '.join(sorted(missing))} differ")
    width = picture_width()
    height = 2 * MARGIN + max(floor for _, floor in PLACES.values()) * FLOOR + HEIGHT
    told = "; ".join(f"{upper} imports {lower}" for upper, lower in arrows())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>{told}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#3b6ea5"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *(arrow(upper, lower) for upper, lower in arrows()),
        *(box(room) for room in rooms()),
        strip(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE).write_text(svg())
