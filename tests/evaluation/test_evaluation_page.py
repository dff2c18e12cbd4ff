"""The report of an evaluation, in a real browser: nothing, one item, thousands."""

import numpy as np
import pytest

from voxinstruct_jax.audio.waveform import write_audio
from voxinstruct_jax.evaluation.evaluation_page import Confusion, Page, PageItem, SummaryRow, write_evaluation_page

ATTACK = '</script><img src=x onerror="document.title=1">'


def page_of(items, **more):
    summary = [
        SummaryRow(
            system="ours",
            slice=part,
            metric=metric,
            value=value,
            low=None if value is None else value - 0.1,
            high=None if value is None else value + 0.1,
            evaluated=0 if value is None else len(items),
            total=len(items),
            direction="lower",
            judge="whisper",
        )
        for part in ("all", "language=en")
        for metric, value in (("wer.vox", 0.25), ("mos", None))
    ]
    confusion = Confusion(attribute="pitch", classes=("low", "high"), counts=((3, 1), (0, 4)))
    return Page(
        title="Evaluation", paragraphs=["A test."], summary=summary, confusions=[confusion], items=items, **more
    )


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "a b.wav"
    write_audio(path, 0.1 * np.sin(np.arange(12_000) / 20).astype(np.float32), 24_000, tag="a tone")
    return path


def opened(browser_page, index):
    problems = []
    browser_page.on("pageerror", lambda error: problems.append(str(error)))
    browser_page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    browser_page.goto(index.as_uri())
    return problems


def test_an_empty_evaluation_says_so(tmp_path, browser_page):
    index = write_evaluation_page(
        tmp_path / "page", Page(title="T", paragraphs=[], summary=[], confusions=[], items=[])
    )
    assert opened(browser_page, index) == []
    assert "nothing to show" in browser_page.locator("#count").inner_text()


def test_an_item_plays_and_shows_what_was_heard(tmp_path, browser_page, sound):
    item = PageItem(
        id="one",
        system="ours",
        language="en",
        instruction=f"Say {ATTACK}",
        transcript="not again today",
        audio=sound,
        heard="not a game today",
        metrics={"wer.vox": 0.5},
        stress=(1,),
    )

    def align(samples, sample_rate, transcript):
        assert (len(samples), sample_rate, transcript) == (12_000, 24_000, item.transcript)
        return ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5))

    index = write_evaluation_page(tmp_path / "page", page_of([item], worst_by="wer.vox"), align=align)
    figure = next((tmp_path / "page" / "figures").iterdir()).read_text()
    assert all(f">{word}<" in figure for word in item.transcript.split())
    problems = opened(browser_page, index)
    browser_page.locator(".row").click()
    detail = browser_page.locator("#detail")
    assert detail.locator("mark").inner_text() == "again"
    assert detail.locator("del").all_inner_texts() == ["again"]
    assert detail.locator("ins").all_inner_texts() == ["a", "game"]
    assert ATTACK in detail.locator("blockquote").inner_text()
    assert detail.locator("audio").evaluate("node => node.play().then(() => node.duration)") == pytest.approx(0.5)
    assert detail.locator("img").evaluate("node => node.decode().then(() => node.naturalWidth)") > 100
    assert browser_page.title() == "Evaluation"
    cells = browser_page.locator("#summary tbody tr").all_inner_texts()
    assert cells[0].split("\t")[:2] == ["wer.vox ↓", "0.25 [0.15, 0.35] (1/1)"]
    assert cells[1].split("\t")[1] == "– (0/1)"
    assert browser_page.locator(".confusion td").all_inner_texts() == ["3", "1", "0", "4"]
    assert problems == []


def test_thousands_of_items_are_filtered_and_the_worst_comes_first(tmp_path, browser_page, sound):
    items = [
        PageItem(
            id=f"i{number}",
            system="ours",
            language=("en", "zh")[number % 2],
            instruction="Say it",
            transcript=f"words number {number}",
            audio=sound if number < 3 else None,
            flags=("runaway",) if number % 100 == 0 else (),
            tags={"position": ("first", "last")[number % 2]},
            metrics={"wer.vox": (number * 37 % 5000) / 5000} if number else {},
        )
        for number in range(5000)
    ]
    index = write_evaluation_page(tmp_path / "page", page_of(items, worst_by="wer.vox"), figures=2)
    assert len(list((tmp_path / "page" / "figures").iterdir())) == 2
    assert opened(browser_page, index) == []
    assert browser_page.locator("#count").inner_text().startswith("5000 of 5000 items, the worst by wer.vox")
    assert browser_page.locator(".row").count() <= 100
    worst = max(range(1, 5000), key=lambda number: number * 37 % 5000)
    assert browser_page.locator(".row").first.inner_text().split()[0] == f"i{worst}"
    browser_page.locator("#language").select_option("zh")
    assert browser_page.locator("#count").inner_text().startswith("2500 of 5000")
    browser_page.locator("#language").select_option("")
    browser_page.locator("#flag").select_option("runaway")
    assert browser_page.locator("#count").inner_text().startswith("50 of 5000")
    browser_page.locator("#search").fill("number 4900")
    assert browser_page.locator("#count").inner_text().startswith("1 of 5000")
    browser_page.locator("#flag").select_option("")
    browser_page.locator("#search").fill("")
    browser_page.locator("#scroll").evaluate("node => { node.scrollTop = node.scrollHeight; }")
    browser_page.locator(".row", has_text="i0").last.wait_for()  # without a value: last of all
    assert browser_page.locator(".row").count() <= 100
