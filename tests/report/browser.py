"""Headless Chromium, where there is one, and what it makes of a page at some widths."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
)

# The page lies in frames, which can be narrower than any window; what is found is left in the outer page.
HARNESS = """<!doctype html><meta charset="utf-8">
{frames}
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument, root = page.documentElement;
    const visible = (element) => {{
      const box = element.getBoundingClientRect();
      const inside = box.left >= 0 && box.right <= root.clientWidth;
      return inside && element.naturalWidth > 0 && box.width > 100 && box.height > 50;
    }};
    const table = page.querySelector("table.sortable");
    const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
    const sorted = {{}};
    for (const button of table.querySelectorAll("th button")) {{
      button.click(); const up = order();
      button.click(); sorted[button.textContent.trim()] = [up, order()];
    }}
    return {{
      width: root.clientWidth, scroll: root.scrollWidth, sorted,
      images: [...page.images].map((image) => [image.alt, visible(image)]),
      words: page.body.innerText,
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


def found_browser() -> str:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium here; install the package chromium to test pages in it")
    return browser


def printed_pages(page: Path, folder: Path) -> int:
    """How many sheets of paper a browser prints the page on."""
    printed = folder / "printed.pdf"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [found_browser(), *FLAGS, profile, f"--print-to-pdf={printed}", page.as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", printed.read_bytes()))


def look_at(page: Path, widths: tuple[int, ...], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What a browser finds in the page at each width, and the errors on its console."""
    browser = found_browser()
    source = html.escape(page.read_text(encoding="utf-8"), quote=True)
    frames = "".join(f'<iframe width="{w}" height="900" srcdoc="{source}"></iframe>' for w in widths)
    harness = folder / "harness.html"
    harness.write_text(HARNESS.format(frames=frames), encoding="utf-8")
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser did not get through the page: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1])), re.findall(r".*CONSOLE.*", done.stderr)
