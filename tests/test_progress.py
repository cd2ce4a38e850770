"""Progress on a terminal and elsewhere."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest

from pyro_vae.progress import progress_bar

CODE = """
import time
from pyro_vae.progress import progress_bar
with progress_bar(300, "epochs") as show:
    for done in range(0, 301, 50):
        show(done, "softplus, seed 2: loss 104.2 nats")
        time.sleep(0.15)
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-79]|4[0-79]|38|9[0-7])[0-9;]*m")


def on_a_terminal(code: str, **environment: str) -> str:
    """What a process writes to a terminal of 80 columns."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=terminal,
        stderr=terminal,
        env={**plain, "TERM": "xterm-256color", **environment},
    )
    os.close(terminal)
    written = b""
    try:
        while chunk := os.read(controller, 4096):
            written += chunk
    except OSError:  # how Linux says that the last writer has gone
        pass
    os.close(controller)
    assert process.wait(timeout=60) == 0
    return written.decode()


def test_a_terminal_of_80_columns_shows_rate_time_left_and_note() -> None:
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(CODE)))
    (last,) = {line.rstrip() for line in lines if "300/300" in line and "/s" in line}
    assert re.fullmatch(
        r"epochs ━+ 300/300 [\d.e+]+/s \d:\d\d:\d\d softplus, seed 2: loss 104.2 nats", last
    ), last
    assert max(map(len, lines)) <= 80


def test_colour_is_for_terminals_that_want_it() -> None:
    assert COLOUR.search(on_a_terminal(CODE))
    assert not COLOUR.search(on_a_terminal(CODE, NO_COLOR="1"))


def test_elsewhere_the_end_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pyro_vae"), progress_bar(2, "fits") as show:
        show(1, "one")
        show(2, "two")
    assert [record.getMessage() for record in caplog.records] == ["fits: 2 of 2, two"]


def test_what_is_not_wanted_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pyro_vae"), progress_bar(1, "fits", enabled=False) as show:
        show(1, "one")
    assert not caplog.records


def test_in_a_notebook_there_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without widgets, on the stream that a notebook shows below the cell."""
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with progress_bar(4, "fit") as show:
        for done in (1, 3, 4):
            show(done, f"loss {done}")
    shown = capsys.readouterr().err
    assert "fit: 100%" in shown
    assert "4/4" in shown
    assert "loss 4" in shown
