import json

import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.items import read_items, request_digest
from voxinstruct_jax.jobs.results import RESULTS_FILE, Result, part_bytes


def write_rows(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def test_results_of_a_job_become_items(tmp_path):
    results = part_bytes(
        [
            Result(id="b", status="failed", instruction="say it", finish_reason="error", seed=4, error="too long"),
            Result(
                id="a", status="done", instruction='A man says: "Yes."', language_predicted="zh", audio="audio/a.wav",
                duration_s=1.5, finish_reason="stop", seed=3, timings={"synthesis_s": 0.5},
                attributes={"gender": "male", "stress": [0]},
            ),
        ],
    )  # fmt: skip
    (tmp_path / RESULTS_FILE).write_bytes(results)
    (one, other), rejected = read_items(tmp_path)
    assert not rejected
    assert (one.id, one.transcript, one.language, one.seed) == ("a", "Yes.", "en", 3)
    assert (one.language_predicted, one.synthesis_s, one.duration_s) == ("zh", 0.5, None)
    assert one.audio == str(tmp_path / "audio" / "a.wav")
    assert one.attributes == {"gender": "male", "stress": [0]}
    assert (other.audio, other.error, other.transcript) == (None, "too long", "")


def test_requests_add_what_results_lack_and_name_what_is_missing(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a.wav").write_bytes(b"")
    (tmp_path / "made" / "stray.wav").write_bytes(b"")
    requests = write_rows(
        tmp_path / "requests.jsonl",
        {"id": "a", "audio": "real/a.wav", "transcript": "你好", "speaker": "tom"},
        {"id": "b", "transcript": "no sound of it"},
    )
    (one, other), _ = read_items(tmp_path / "made", requests)
    assert one.audio == str(tmp_path / "made" / "a.wav")
    assert one.reference_audio == str(tmp_path / "real" / "a.wav")
    assert (one.language, one.speaker) == ("zh", "tom")
    assert (other.id, other.audio) == ("b", None)


def test_what_is_spoken_is_found_among_fields(tmp_path):
    asked = '{"voice": "an old man, slow and calm", "text": "Good night."}'
    requests = write_rows(tmp_path / "requests.jsonl", {"id": "a", "instruction": asked})
    (tmp_path / "made").mkdir()
    (one,), _ = read_items(tmp_path / "made", requests)
    assert one.transcript == "Good night."


def test_bad_rows_are_set_aside_with_their_number_and_an_empty_transcript_is_none(tmp_path):
    table = write_rows(
        tmp_path / "manifest.jsonl",
        {"id": "a", "audio": "a.wav", "transcript": ""},
        "{broken",
        {"audio": "nameless.wav"},
        {"id": "a", "audio": "again.wav"},
        {"id": "c", "transcript": 5},
        {"id": "d", "attributes": {"stress": "first"}},
    )
    items, rejected = read_items(table)
    assert [item.id for item in items] == ["a"]
    assert sorted(row.row for row in rejected) == [0, 0, 2, 3, 4]
    assert any("'transcript'" in row.reason for row in rejected)
    assert any("stress" in row.reason for row in rejected)


def test_no_input_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"holds no results\.parquet.*--requests"):
        read_items(tmp_path)
    with pytest.raises(InputError, match="no such folder or file"):
        read_items(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no usable row"):
        read_items(write_rows(tmp_path / "manifest.jsonl", {"id": 5}))


def test_equal_requests_have_equal_names_whatever_their_ids(tmp_path):
    table = write_rows(
        tmp_path / "manifest.jsonl",
        {"id": "a", "transcript": "yes", "seed": 1},
        {"id": "b", "transcript": "yes", "seed": 2},
        {"id": "c", "transcript": "no"},
    )
    one, same, other = (request_digest(item) for item in read_items(table)[0])
    assert one == same != other
