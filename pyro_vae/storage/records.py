"""Write JSON that knows whether it is what was written, and know files by their checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pyro_vae.storage.atomic import write_whole

LONGEST = 64 * 2**20
"""Bytes of the largest record that is read; a real one has a few thousand."""

ROWS_AT_ONCE = 8192


def checksum(content: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def checksum_of_rows(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's shape, type and content, some rows at a time: it may be a memory map."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    for start in range(0, len(array), ROWS_AT_ONCE):
        digest.update(array[start : start + ROWS_AT_ONCE].tobytes())
    return digest.hexdigest()


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as JSON with a checksum of themselves under ``"sha256"``, whole or not at all."""
    text = json.dumps({**content, "sha256": _seal(content)}, indent=2)
    write_whole(path, (text + "\n").encode())


def read_record(path: Path, schema: int, *, strict: bool = True) -> dict[str, Any]:
    """Read what :func:`write_record` wrote, without the checksum and the schema. Raises FileNotFoundError if
    there is no such file; ValueError if it is no JSON object, of another schema, or not the one that was
    written.

    Parameters
    ----------
    path
        The file.
    schema
        The version that its content must have, under ``"schema"``.
    strict
        Whether it must have its checksum. Who changes a record by hand, to use it as a configuration, takes
        the checksum out.
    """
    content = parse_json(read_bytes(path, at_most=LONGEST), path)
    check_schema(content, schema, path)
    if "sha256" in content:
        seal = content.pop("sha256")
        if seal != _seal(content):
            raise ValueError(
                f"{path} is not what was written: its checksum (sha256) is another's; it is damaged or was "
                "changed by hand (to use a changed record as a configuration, take its sha256 out)"
            )
    elif strict:
        raise ValueError(f"{path} has no checksum (sha256) of itself; it is damaged or foreign")
    del content["schema"]
    return dict(content)


def check_schema(content: Any, schema: int, path: Path) -> None:
    """See that a file's content is of the version that can be read. Raises ValueError if it is of another; a
    newer one is named.

    Examples
    --------
    >>> check_schema({"schema": 3}, 2, Path("run.json"))
    Traceback (most recent call last):
        ...
    ValueError: run.json has schema 3, and this version of pyro-vae reads schema 2: update pyro-vae to read it
    """
    found = content.get("schema") if isinstance(content, dict) else None
    if type(found) is int and found == schema:
        return
    newer = type(found) is int and found > schema
    advice = "update pyro-vae to read it" if newer else "it is damaged or foreign"
    raise ValueError(
        f"{path} has schema {found!r}, and this version of pyro-vae reads schema {schema}: {advice}"
    )


def parse_json(content: bytes, path: Path) -> Any:
    """What a JSON file holds. Raises ValueError if it is none, whatever is wrong with it."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{path} is not JSON of ours (it is nested too deeply); it is foreign") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); it is damaged or foreign") from error


def read_bytes(path: Path, sha256: str | None = None, *, at_most: int | None = None) -> bytes:
    """A whole file, if it is the one that bears this checksum. Raises FileNotFoundError if there is no such
    file; ValueError if it is another, is too long, or cannot be read."""
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
