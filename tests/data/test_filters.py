import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.filters import FilterConfig, filter_rows, write_rows
from voxinstruct_jax.data.manifest import Rejection, Row, read_manifest


def row(name="a", transcript="Not again.", **changes):
    given = {"audio": f"/{name}.wav", "language": "en", "duration_s": 4.0}
    return Row(id=name, transcript=transcript, **given | changes)


def kinds(rows, **config):
    """The kind of reason for each row, None for those that stay."""
    found = filter_rows(rows, FilterConfig(**config))
    return [item.reason.partition(": ")[0] if isinstance(item, Rejection) else None for item in found]


def test_the_defaults_keep_what_can_be_used():
    texts = ["Not again.", "5", "你好" * 1000, "Say “שלום” to them, twice.", 'print("x" * 3)  # code', "it's\n3.5 °C"]
    rows = [row(str(n), text, language="zh" if "好" in text else "en", duration_s=None) for n, text in enumerate(texts)]
    assert list(filter_rows(rows, FilterConfig())) == rows


@pytest.mark.parametrize(
    ("transcript", "kind"),
    [
        ("?!… —", "only marks"),
        ("😀", "only marks"),
        ("broken \ufffd text", "damaged text"),
        ("a\x00b", "damaged text"),
        ("key " + "q" * 46, "unpronounceable"),
        ("你好，世界", "language"),
        ("שלום עולם", "language"),
    ],
)
def test_unusable_transcripts_are_dropped(transcript, kind):
    assert kinds([row(transcript=transcript)]) == [kind]


def test_the_language_is_told_by_script():
    mixed = [row("a", "我用 Python 写", language="zh"), row("b", "play 好 now"), row("c", "hello", language="zh")]
    assert kinds(mixed) == [None, None, "language"]
    assert kinds([mixed[2]], min_script_share=0.0) == [None]
    assert kinds([row("d", "hello", language="xx")]) == [None]  # no script is known for it
    assert kinds([row("d", "hola", language="es"), row("e")], languages=("en",)) == ["language", None]


def test_durations_and_rates_are_bounded():
    rows = [row("a", duration_s=2.99), row("b", duration_s=3.0), row("c", duration_s=30.1), row("d", duration_s=None)]
    assert kinds(rows, min_duration_s=3.0, max_duration_s=30.0) == ["too short", None, "too long", None]
    chinese = row("e", "一二三四五六七八九十", language="zh", duration_s=1.0)
    rows = [chinese, row("f", "one two three", duration_s=1.0), row("g", "one", duration_s=10.0)]
    assert kinds(rows, max_words_per_s={"zh": 9.0}) == ["too fast", None, None]
    assert kinds(rows, max_words_per_s={"en": 2.0}, min_words_per_s={"en": 0.5}) == [None, "too fast", "too slow"]


def test_low_and_missing_values_are_dropped():
    rows = [
        row(str(n), extra=extra) for n, extra in enumerate([{"q": 3.0}, {"q": 2.9}, {"q": math.nan}, {"q": "x"}, {}])
    ]
    assert kinds(rows, min_values={"q": 3.0}) == [None, "low q", "low q", "no q", "no q"]


def test_repeated_ids_spans_and_words_are_dropped():
    spans = [row("a"), row("a", audio="/b.wav"), row("b", audio="/a.wav"), row("c", audio="/a.wav", offset_s=4.0)]
    assert kinds(spans) == [None, "repeated id", "repeated audio", None]
    words = [row("a", "Yes!", speaker="x"), row("b", "yes", speaker="x"), row("c", "Yes.", speaker="x")]
    words += [row("d", "Yes", speaker="y"), row("e", "No", speaker="x")]
    assert kinds(words) == [None] * 5
    assert kinds(words, max_repeats=1) == [None, "repeated words", "repeated words", None, None]
    assert kinds(words, max_repeats=2) == [None, None, "repeated words", None, None]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 9), st.sampled_from(["Hi.", "??", "好"]))))
def test_every_row_comes_out_once_kept_or_rejected_with_its_id(drawn):
    rows = [row(str(name), text, audio=f"/{n}.wav", duration_s=length) for n, (name, length, text) in enumerate(drawn)]
    found = list(filter_rows(rows, FilterConfig(min_duration_s=3.0)))
    assert [item.id for item in found] == [item.id for item in rows]
    assert all(item in rows for item in found if isinstance(item, Row))
    assert list(filter_rows(found, FilterConfig(min_duration_s=3.0))) == found  # filtering again changes nothing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_duration_s": -1.0}, "filter.min_duration_s: -1 must be between 0 and max_duration_s"),
        ({"min_duration_s": 5.0, "max_duration_s": 4.0}, "filter.min_duration_s: 5"),
        ({"min_script_share": 2.0}, "filter.min_script_share: 2"),
        ({"max_repeats": 0}, "filter.max_repeats: 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FilterConfig(**settings)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_are_written_and_rejections_listed_and_counted(tmp_path, suffix):
    items = [row("a"), Rejection(row=2, id="b\udcff", reason="no text: x"), row("c", language="zh", duration_s=None)]
    items += [Rejection(row=4, id="d", reason="no text: y"), Rejection(row=5, id="e", reason="too short: 1 s")]
    out = tmp_path / f"m.{suffix}"
    summary = write_rows(str(out), items)
    assert (summary.rows, summary.without_duration, summary.hours) == (2, 1, pytest.approx(4 / 3600))
    assert (summary.languages, summary.rejected) == ({"en": 1, "zh": 1}, {"no text": 2, "too short": 1})
    assert [item.id for item in read_manifest(out)] == ["a", "c"]
    lines = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [2, 4, 5]
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "rejected.jsonl"}


def test_with_no_row_left_the_old_manifest_stays(tmp_path):
    (tmp_path / "m.jsonl").write_text("old")
    with pytest.raises(InputError, match=r"no row is left \(no text: 1\); see .*rejected.jsonl"):
        write_rows(str(tmp_path / "m.jsonl"), [Rejection(row=1, id="a", reason="no text: none")])
    assert (tmp_path / "m.jsonl").read_text() == "old"
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"m.jsonl", "rejected.jsonl"}
