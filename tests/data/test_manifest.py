import json
import re

import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.manifest import Annotation, Rejection, Row, iter_manifest, read_manifest, write_manifest

PLAIN = {"id": "a", "audio": "a.wav", "language": "en", "transcript": "Hello."}


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_row_is_read_with_its_audio_beside_the_manifest(tmp_path):
    record = PLAIN | {
        "instruction": "Say hello",
        "offset_s": 1,
        "duration_s": 2.5,
        "speaker": "s",
        "measured": {"f0": 1},
    }
    [row] = read_manifest(write_lines(tmp_path / "m.jsonl", record))
    assert row == Row(
        id="a",
        audio=f"{tmp_path}/a.wav",
        language="en",
        transcript="Hello.",
        offset_s=1.0,
        duration_s=2.5,
        speaker="s",
        instructions=("Say hello",),
        extra={"measured": {"f0": 1}},
    )


@pytest.mark.parametrize("audio", ["/data/a.wav", "gs://bucket/a.wav"])
def test_absolute_paths_and_addresses_stay(tmp_path, audio):
    [row] = read_manifest(write_lines(tmp_path / "m.jsonl", PLAIN | {"audio": audio}))
    assert row.audio == audio


@pytest.mark.parametrize("name", ["m.jsonl", "m.parquet"])
def test_written_manifests_read_back_equal(tmp_path, name):
    rows = [
        Row(
            id="a",
            audio=f"{tmp_path}/sub/a.wav",
            language="zh",
            transcript="你好。",
            instructions=("说好", "再说"),
        ),
        Row(
            id="b",
            audio="/elsewhere/b.wav",
            language="en",
            transcript="Not again.",
            offset_s=0.5,
            duration_s=1.25,
            speaker="x",
            attributes={"gender": "male", "stress": [1]},
            annotations={
                "gender": Annotation(value=None, unit="", label="male", confidence=0.9, judge="a"),
                "pitch": Annotation(value=120.5, unit="Hz", label="low", confidence=0.5, judge="b 1"),
            },
            word_times_s=((0.1, 0.4), (0.4, 0.9)),
            extra={"measured": {"f0": 1}, "split": "train"},
        ),
    ]
    write_manifest(tmp_path / name, rows)
    assert read_manifest(tmp_path / name) == rows
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_relative_audio_is_written_relative(tmp_path):
    write_manifest(tmp_path / "m.jsonl", [Row(id="a", audio=f"{tmp_path}/x/a.wav", language="en", transcript="Hi")])
    assert json.loads((tmp_path / "m.jsonl").read_text())["audio"] == "x/a.wav"


BAD = [
    ({"transcript": 5}, "column 'transcript': expected text, got 5"),
    ({"transcript": " "}, "column 'transcript': empty; fill it or remove the row"),
    ({"language": None}, "column 'language': missing; every row needs it as text"),
    ({"offset_s": "1"}, "column 'offset_s': expected a number, got '1'; give seconds"),
    ({"offset_s": True}, "column 'offset_s': expected a number, got True; give seconds"),
    ({"duration_s": -1}, "column 'duration_s': -1 is no time; give seconds from 0 up"),
    ({"duration_s": 0}, "column 'duration_s': 0 s; leave it out"),
    (
        {"instructions": "Say it"},
        "column 'instructions': expected a list, got 'Say it'; one text goes into 'instruction'",
    ),
    ({"instructions": ["Say it", 3]}, "column 'instructions': 3 is no text"),
    ({"instruction": "x", "instructions": ["x"]}, "columns 'instruction' and 'instructions': both given"),
    ({"attributes": ["female"]}, "column 'attributes': expected an object, got ['female']"),
    ({"attributes": {"stress": "1"}}, "column 'attributes.stress': expected a list of word indices, got '1'"),
    ({"attributes": {"gender": 1}}, "column 'attributes.gender': expected text, got 1"),
    ({"id": "first"}, "column 'id': 'first' stands in an earlier row already; make ids unique"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_row_is_named_with_its_file_number_column_and_mend(tmp_path, change, message):
    path = write_lines(tmp_path / "m.jsonl", PLAIN | {"id": "first"}, PLAIN | change)
    with pytest.raises(InputError, match=re.escape(f"{path}: row 2: {message}")):
        read_manifest(path)


def test_bad_rows_can_be_set_aside_and_the_rest_is_read(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", PLAIN, PLAIN | {"id": "b", "audio": 1}, PLAIN | {"id": "c"})
    path.write_text(path.read_text() + "{not json\n")
    rejected: list[Rejection] = []
    assert [row.id for row in read_manifest(path, rejected=rejected)] == ["a", "c"]
    assert [(item.row, item.id) for item in rejected] == [(2, "b"), (4, "")]
    assert "column 'audio'" in rejected[0].reason
    assert "no valid JSON" in rejected[1].reason


def test_a_wrong_type_in_parquet_is_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "m.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PLAIN, PLAIN | {"id": "b", "speaker": None}]), path)
    assert [row.id for row in read_manifest(path)] == ["a", "b"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PLAIN | {"transcript": 7}]), path)
    with pytest.raises(InputError, match="row 1: column 'transcript': expected text, got 7"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such manifest"),
        ("empty.jsonl", "\n", "holds no rows"),
        ("list.jsonl", "[1]\n", r"expected an object with named columns, got \[1\]"),
        ("text.parquet", "hello", "no valid Parquet"),
    ],
)
def test_files_that_are_no_manifest_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / name)


def test_a_packed_manifest_reads_row_by_row(tmp_path):
    rows = (Row(id=f"clip {n}", audio="/a.wav", language="en", transcript="Hi") for n in range(6_000))
    assert write_manifest(tmp_path / "m.jsonl.gz", rows) == 6_000
    assert next(iter_manifest(tmp_path / "m.jsonl.gz")).id == "clip 0"
    assert sum(1 for _ in iter_manifest(tmp_path / "m.jsonl.gz")) == 6_000


def test_an_id_that_repeats_far_away_is_found(tmp_path):
    ids = [*(str(n) for n in range(7_000)), "7"]
    write_manifest(tmp_path / "m.jsonl", (Row(id=i, audio="/a.wav", language="en", transcript="Hi") for i in ids))
    rejected: list[Rejection] = []
    assert sum(1 for _ in iter_manifest(tmp_path / "m.jsonl", rejected=rejected)) == 7_000
    assert [(item.row, item.id) for item in rejected] == [(7_001, "7")]


def test_a_cut_off_write_leaves_the_old_file(tmp_path):
    def rows():
        yield Row(id="a", audio="/a.wav", language="en", transcript="Hi")
        raise KeyboardInterrupt

    (tmp_path / "m.jsonl").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path / "m.jsonl", rows())
    assert (tmp_path / "m.jsonl").read_text() == "old"
