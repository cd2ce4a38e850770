"""JSON that knows whether it is what was written, and files that are known by their checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.storage.atomic import write_whole

__all__ = ["checksum", "parse_json", "read_bytes", "read_record", "sealed", "write_record"]

LONGEST = 64 * 2**20
"""Bytes of the largest record that is read; a real one has a few thousand."""


def checksum(content: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as JSON with a checksum of themselves under ``"sha256"``, whole or not at all."""
    text = json.dumps(sealed(content), indent=2)
    write_whole(path, (text + "\n").encode())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its checksum."""
    return {**content, "sha256": _seal(content)}


def read_record(path: Path) -> dict[str, Any]:
    """Read what :func:`write_record` wrote, without the checksum.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no JSON object, or not the one that was written.
    """
    content = parse_json(read_bytes(path, at_most=LONGEST), path)
    if not isinstance(content, dict) or "sha256" not in content:
        raise ValueError(f"{path} has no checksum (sha256) of itself; it is damaged or foreign")
    seal = content.pop("sha256")
    if seal != _seal(content):
        raise ValueError(
            f"{path} is not what was written, for its checksum (sha256) is another's; it is damaged or was "
            "changed by hand"
        )
    return content


def parse_json(content: bytes, path: Path) -> Any:
    """What a JSON file holds.

    Raises
    ------
    ValueError
        If it is none, whatever is wrong with it.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{path} cannot be read (it is nested too deeply); it is foreign") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); it is damaged or foreign") from error


def read_bytes(path: Path, sha256: str | None = None, *, at_most: int | None = None) -> bytes:
    """A whole file, if it is the one that bears this checksum.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is another, is too long, or cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if at_most is not None and path.stat().st_size > at_most:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, and no such file has; it is foreign")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    if sha256 is not None and checksum(content) != sha256:
        raise ValueError(
            f"{path} cannot be read (its checksum is not the one that was noted when it was written); it is "
            "damaged or foreign"
        )
    return content


def _seal(content: Mapping[str, Any]) -> str:
    try:
        return checksum(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    except RecursionError:
        return ""
