"""The report of an evaluation, in a real browser: nothing, one item, thousands."""

import json

import numpy as np
import pytest

from voxinstruct_jax.audio.waveform import write_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.evaluated import read_page
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
    detail = browser_page.locator("#detail")
    assert detail.is_hidden()
    assert browser_page.locator("#scroll").bounding_box()["height"] < 50  # a table of one row is no taller
    browser_page.locator(".row").click()
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


def test_a_page_is_made_of_what_evaluate_wrote(tmp_path, sound):
    folder = tmp_path / "scores"
    folder.mkdir()
    row = {
        "slice": "all", "metric": "wer.vox", "value": 0.5, "ci_low": None, "ci_high": None, "evaluated": 1, "total": 2,
        "failed": 1, "void": 0, "skipped": 0, "unit": "errors a token", "better": "lower", "protocol": "p",
        "judge": "j", "note": "",
    }  # fmt: skip
    item = {
        "id": "a", "system": "s", "language": "en", "transcript": "one two", "instruction": "Say",
        "attributes": {"stress": [1]}, "tags": ["language=en", "position=first"],
        "metrics": {"wer.vox": {"value": 0.5}, "mos": {"value": None}},
        "evidence": {"flags": ["truncated"], "asr": {"heard": "one"}, "sound": {"status": "ok"}}, "error": None,
    }  # fmt: skip
    lost = item | {"id": "b", "metrics": {}, "evidence": {"flags": [], "sound": {"problem": "no file"}}}
    confusion = {"pitch": {"low": {"low": 2, "high": 1}}}
    written = {
        "summary": {"rows": [row], "items": 2, "rejected": 1, "confusion": confusion},
        "judges": {"judges": {"asr": "whisper"}, "missing": {"mos.utmos": "needs a file"}},
        "sources": {"audio": {"a": str(sound)}},
    }
    for name, content in written.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "items.jsonl").write_text("\n".join(json.dumps(each) for each in (item, lost)))
    page = read_page({"ours": folder}, "T")
    assert page.paragraphs == ["ours: 2 items, 1 rows set aside"]
    assert page.worst_by == "error rate"
    assert [(row.system, row.value, row.evaluated) for row in page.summary] == [("ours", 0.5, 1)]
    assert page.confusions == [Confusion(attribute="pitch", classes=("low", "high"), counts=((2, 1), (0, 0)))]
    first, second = page.items
    assert (first.audio, first.heard, first.stress, first.flags) == (sound, "one", (1,), ("truncated",))
    assert first.metrics == {"wer.vox": 0.5, "error rate": 0.5}
    assert first.tags == {"position": "first"}
    assert (second.audio, second.error) == (None, "no file")
    assert page.judges == {"asr": "whisper", "mos.utmos": "left out: needs a file"}
    (folder / "summary.json").unlink()
    with pytest.raises(InputError, match=r"scores: no finished evaluation .*; run `voxinstruct evaluate` first"):
        read_page({"ours": folder}, "T")
