"""Real recordings, manifests of tones, and a real browser for the pages."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

PROMPTS = Path(__file__).parents[1] / "corpus" / "asterisk"
RATE = 16_000


@pytest.fixture(scope="session")
def prompts():
    """Two real recordings at 16 kHz: `(samples, transcript)`, of 2.7 and 3.1 s."""
    import soxr

    rows = [json.loads(line) for line in (PROMPTS / "manifest.jsonl").read_text("utf-8").splitlines()]
    found = []
    for row in rows[:1] + rows[2:3]:
        samples, rate = soundfile.read(PROMPTS / row["audio"], dtype="float32")
        found.append((soxr.resample(samples, rate, RATE).astype(np.float32), row["transcript"]))
    return found


@pytest.fixture
def spoken(tmp_path, monkeypatch):
    """Makes a manifest of tones; `said` is what the parrot hears of each."""

    class Spoken:
        folder = tmp_path / "spoken"
        heard = tmp_path / "heard.json"

        def __init__(self):
            self.rows, self.texts = [], {}
            self.folder.mkdir()
            monkeypatch.setenv("VOX_TEST_HEARD", str(self.heard))
            monkeypatch.syspath_prepend(str(Path(__file__).parent))

        def add(self, name, transcript, said, *, language="en", seconds=None, sound=True, **columns):
            seconds = seconds or 1.2 + 0.01 * len(self.rows)
            path = self.folder / f"{name}.wav"
            if sound:
                tone = 0.3 * np.sin(2 * np.pi * 150 * np.arange(round(seconds * RATE)) / RATE)
                soundfile.write(path, tone, RATE)
            self.texts[f"{min(seconds, 60):.2f}"] = said
            row = {"id": name, "audio": path.name, "transcript": transcript, "language": language, **columns}
            self.rows.append(row)
            self.write()
            return path

        def write(self):
            self.heard.write_text(json.dumps(self.texts), "utf-8")
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
            (self.folder / "manifest.jsonl").write_text(text, "utf-8")

    return Spoken()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here; install it to test the pages in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield opened
        opened.close()


@pytest.fixture
def browser_page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(accept_downloads=True)
    yield context.new_page()
    context.close()
