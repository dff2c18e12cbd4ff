from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from voxinstruct_jax.audio.waveform import write_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.report import ReportItem, ReportSection, write_report

RATE = 24_000
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, texts and ids, and checks that tags nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


@pytest.fixture
def tone(tmp_path):
    path = tmp_path / "sounds" / "a tone #1.wav"
    time = np.arange(RATE // 2) / RATE
    write_audio(path, (0.3 * np.sin(2 * np.pi * 200 * time)).astype(np.float32), RATE, tag="test")
    return path


def page_of(folder, *items):
    section = ReportSection(title="Cases", introduction="Listen.", items=items)
    report = write_report(folder, "Demo", "First.\n\nSecond.", [section])
    return Page(report.read_text("utf-8"))


def test_page_shows_player_text_facts_and_plot_of_an_item(tmp_path, tone):
    item = ReportItem(
        title="Case (a)", instruction='Say “hello”.', audio=tone, language="en", seed=7, finish_reason="stop",
        heard="hello", judgement="0 errors in 1 word", facts={"Tokens": "42"}, stress_s=(0.1, 0.2),
    )  # fmt: skip
    page = page_of(tmp_path / "out", item)
    for shown in (
        "Case (a)",
        "Say “hello”.",
        "Heard: hello",
        "0 errors in 1 word",
        "English",
        "0.50 s",
        "stop",
        "7",
        "42",
    ):
        assert shown in page.text
    (player,) = page.of("audio")
    assert (tmp_path / "out" / unquote(player["src"])).read_bytes() == tone.read_bytes()
    (svg,) = page.of("svg")
    assert "median pitch 200 Hz" in svg["aria-label"] or "median pitch 199 Hz" in svg["aria-label"]


def test_foreign_text_is_never_markup(tmp_path, tone):
    evil = '<script>alert(1)</script> "><img src=x onerror=alert(2)> & {{ 7*7 }}'
    item = ReportItem(
        title=evil, instruction=evil, audio=tone, finish_reason=evil, heard=evil, judgement=evil, facts={evil: evil}
    )
    page = page_of(tmp_path / "out", item)
    assert not page.of("script")
    assert not page.of("img")
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "49" not in page.text


def test_page_loads_nothing_from_elsewhere(tmp_path, tone):
    page = page_of(tmp_path / "out", ReportItem(title="x", instruction="y", audio=tone))
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")]
    assert links
    assert all(link.startswith(("#", "data:", "audio/")) for link in links)
    assert not page.of("link")


def test_ids_are_unique_though_every_plot_is_alike(tmp_path, tone):
    items = [ReportItem(title=str(n), instruction="y", audio=tone) for n in range(2)]
    page = page_of(tmp_path / "out", *items)
    ids = [attrs["id"] for tag, attrs in page.tags if "id" in attrs and tag == "clippath"]
    assert ids
    assert len(ids) == len(set(ids))


def test_audio_in_the_folder_is_linked_and_not_copied(tmp_path, tone):
    page = page_of(tone.parent, ReportItem(title="x", instruction="y", audio=tone))
    assert unquote(page.of("audio")[0]["src"]) == tone.name
    assert not (tone.parent / "audio").exists()


@pytest.mark.parametrize("name", ["missing.wav", "broken.wav"])
def test_item_without_readable_audio_stays_and_says_so(tmp_path, name):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    page = page_of(tmp_path / "out", ReportItem(title="Lost one", instruction="y", audio=tmp_path / name))
    assert "Lost one" in page.text
    assert "No audio:" in page.text
    assert not page.of("audio")


def test_failed_item_shows_its_reason_and_unjudged_one_too(tmp_path, tone):
    failed = ReportItem(title="x", instruction="y", audio=None, finish_reason="error", judgement="the text is empty")
    unjudged = ReportItem(title="x", instruction="y", audio=tone, judgement="not judged: no ASR installed")
    page = page_of(tmp_path / "out", failed, unjudged)
    assert "No audio: the text is empty" in page.text
    assert "not judged: no ASR installed" in page.text
    assert "Heard:" not in page.text


def test_report_without_items_explains_itself(tmp_path):
    page = Page(write_report(tmp_path / "out", "Empty", "", []).read_text("utf-8"))
    assert "nothing to show" in page.text


def test_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "file" / "out", "x", "", [])
