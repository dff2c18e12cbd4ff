import hashlib
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from voxinstruct_jax.config import InputError
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.jobs.requests import RejectedRequest, Request, derive_seed, read_requests

GOOD = {"id": "a", "instruction": 'Say "yes"'}


def write_lines(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rejection_of(tmp_path, changes):
    row = {name: value for name, value in {**GOOD, "id": "b", **changes}.items() if value is not None}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(GOOD) + "\n")
    requests, [rejected] = read_requests(path)
    assert [request.id for request in requests] == ["a"]
    assert rejected.row == 1
    return rejected.reason


def test_all_columns_are_read_and_prompts_lie_beside_the_file(tmp_path):
    soundfile.write(tmp_path / "speaker.wav", [0.0] * 10, 16000)
    row = {
        "id": "x/1",
        "instruction": "慢慢地说：“好”",
        "transcript": "好",
        "language": "zh",
        "prompt": "speaker.wav",
        "prompt_transcript": "你好",
        "seed": 7,
        "guidance": [1, 10, 0],
        "max_duration_s": 2,
        "attributes": {"gender": "female", "stress": [0]},
    }
    assert read_requests(write_lines(tmp_path / "r.jsonl", row)) == (
        [
            Request(
                id="x/1",
                instruction="慢慢地说：“好”",
                transcript="好",
                language="zh",
                prompt=str(tmp_path / "speaker.wav"),
                prompt_transcript="你好",
                seed=7,
                guidance=Guidance(text_on_semantic=1.0, text_on_acoustic=10.0, semantic_on_acoustic=0.0),
                max_duration_s=2.0,
                attributes={"gender": "female", "stress": [0]},
            )
        ],
        [],
    )


def test_parquet_gives_the_same_requests_as_json_lines(tmp_path):
    rows = [
        {**GOOD, "seed": 3, "guidance": dict.fromkeys(vars(Guidance()), 2.0), "attributes": {"age": "old"}},
        {"id": "b", "instruction": "Say no", "seed": None, "guidance": None, "attributes": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    assert read_requests(tmp_path / "r.parquet") == read_requests(write_lines(tmp_path / "r.jsonl", *rows))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "id: missing"),
        ({"id": 5}, "id: expected text, got 5"),
        ({"id": "x" * 501}, "id: 501 characters, at most 500"),
        ({"instruction": ["x" * 10_000]}, "instruction: expected text, got .{100,200}…$"),
        ({"guidance": [float("nan"), 1, 1]}, "text_on_semantic: nan is not a number"),
        ({"instruction": None}, "instruction: missing"),
        ({"instruction": "  "}, "instruction: empty"),
        ({"instruction": "🙂🎉"}, "holds no words"),
        ({"instruction": "word " * 1000}, "5000 characters"),
        ({"instruction": "x \ud800"}, "surrogate"),
        ({"transcrpt": "yes"}, "unknown column 'transcrpt'; did you mean 'transcript'?"),
        ({"language": ["en"]}, "language: expected text"),
        ({"prompt": "none.wav"}, "no such audio file: .*none.wav"),
        ({"prompt_transcript": "hi"}, "without a prompt"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"seed": 2**32}, "seed: expected a whole number"),
        ({"max_duration_s": "5"}, "max_duration_s: expected seconds"),
        ({"max_duration_s": 0}, "max_duration_s: expected seconds"),
        ({"max_duration_s": float("nan")}, "max_duration_s: expected seconds"),
        ({"guidance": [1, 2]}, "guidance: expected \\[text_on_semantic"),
        ({"guidance": [1, 2, -3]}, "semantic_on_acoustic: -3"),
        ({"guidance": {"text_on_semantc": 1}}, "did you mean 'text_on_semantic'"),
        ({"guidance": {"text_on_semantic": 1}}, "'text_on_acoustic' is missing"),
        ({"attributes": "female"}, "attributes: expected an object"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason_and_the_rest_goes_on(tmp_path, changes, reason):
    found = rejection_of(tmp_path, changes)
    assert re.search(reason, found)
    assert "\n" not in found


def test_lines_that_are_no_objects_are_set_aside_with_their_own_numbers(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", GOOD, "", "{broken", "[1]", {**GOOD, "id": "c"}, "[" * 100_000)
    requests, rejected = read_requests(path)
    assert [request.id for request in requests] == ["a", "c"]
    assert [row.row for row in rejected] == [3, 4, 6]


def test_of_two_rows_with_one_id_the_first_wins(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", GOOD, {**GOOD, "instruction": "Say no"})
    requests, [rejected] = read_requests(path)
    assert requests == [Request(**GOOD)]
    assert rejected == RejectedRequest(row=2, id="a", reason="id 'a' stands in row 1 already, which was taken")


def test_a_line_that_is_too_long_is_set_aside_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("voxinstruct_jax.jobs.requests.MAX_LINE_BYTES", 100)
    path = write_lines(tmp_path / "r.jsonl", GOOD, "x" * 100, "x" * 101, "x" * 1000, {**GOOD, "id": "b"})
    requests, rejected = read_requests(path)
    assert [request.id for request in requests] == ["a", "b"]
    assert [row.row for row in rejected] == [2, 3, 4]
    assert [row.reason.startswith("longer than") for row in rejected] == [False, True, True]


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_missing_or_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"no such request file|holds no requests"):
        read_requests(path)


def test_a_torn_parquet_is_one_clear_line(tmp_path):
    (tmp_path / "r.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match="no valid Parquet") as found:
        read_requests(tmp_path / "r.parquet")
    assert "\n" not in str(found.value)


def test_derived_seeds_follow_from_job_seed_and_id_alone():
    expected = int(hashlib.sha256(b"5 clip-1").hexdigest()[:8], 16)
    assert derive_seed(5, "clip-1") == expected
    assert len({derive_seed(job, str(i)) for job in range(3) for i in range(50)}) == 150
