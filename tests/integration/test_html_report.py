# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTML report in a real browser: it renders correctly, runs no script, and requests nothing."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from report_samples import BAD, GOOD, INFRA, SKIPPED
from test_report_html import mapped

from harness.report.book import book_of
from harness.report.html import to_html

NOW = "2026-11-21T00:00:00+00:00"


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: make test installs it")
        pytest.skip("no Chromium: sudo apt-get install chromium")
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(to_html(book_of("night", NOW, [GOOD, BAD, SKIPPED, INFRA, mapped()], {})))
    return path


def chromium(browser: str, folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    # Chromium's sandbox does not work as root; the page is ours, and the test is about the guests' text in it.
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    common += [f"--user-data-dir={folder / 'profile'}", "--window-size=1280,1800"]
    common += ["--host-resolver-rules=MAP * ~NOTFOUND"]
    return subprocess.run([browser, *common, *words], capture_output=True, timeout=600, check=True)


def test_the_browser_shows_it_and_complains_of_nothing(browser: str, page: Path, tmp_path: Path) -> None:
    done = chromium(browser, tmp_path, "--dump-dom", page.as_uri())
    dom = done.stdout.decode()
    assert dom.count('class="run"') == 5 and 'id="grid"' in dom
    assert "BLK-1 broken." in dom and "<x>" not in dom and "<script" not in dom
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    assert said == [], "the browser's console must stay empty"


def test_the_picture_has_the_colours_of_the_verdicts(browser: str, page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    chromium(browser, tmp_path, f"--screenshot={shot}", page.as_uri())
    seen = {pixel for row in pixels(shot.read_bytes()) for pixel in row}
    style = (Path(to_html.__code__.co_filename).parent / "style.css").read_text()
    for name in ("pass", "fail", "infra"):
        colours = re.findall(rf"--{name}: #([0-9a-f]{{6}})", style)
        assert any(bytes.fromhex(colour) in seen for colour in colours), f"nothing has the colour of {name}"


def pixels(png: bytes) -> Iterator[set[bytes]]:
    """The colours of each row of a PNG with 8 bits per channel, as Chromium writes it."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8 and kind in (2, 6)
    data, at = b"", 8
    while at < len(png):
        [size] = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += 12 + size
    raw, step = zlib.decompress(data), 3 if kind == 2 else 4
    before = bytearray(width * step)
    for row in range(height):
        start = row * (width * step + 1)
        line = bytearray(raw[start + 1 : start + 1 + width * step])
        _unfilter(raw[start], line, before, step)
        before = line
        yield {bytes(line[at : at + 3]) for at in range(0, width * step, step)}


def _unfilter(kind: int, line: bytearray, above: bytearray, step: int) -> None:
    """PNG's five filters (https://www.w3.org/TR/png/#9Filters)."""
    for at in range(len(line)):
        left = line[at - step] if at >= step else 0
        up, corner = above[at], above[at - step] if at >= step else 0
        if kind == 1:
            line[at] = (line[at] + left) & 255
        elif kind == 2:
            line[at] = (line[at] + up) & 255
        elif kind == 3:
            line[at] = (line[at] + (left + up) // 2) & 255
        elif kind == 4:
            guess = left + up - corner
            near = min((abs(guess - value), order, value) for order, value in enumerate((left, up, corner)))
            line[at] = (line[at] + near[2]) & 255
