import dataclasses
import hashlib
import json

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.jobs.requests import RejectedRequest, Request, derive_seed
from voxinstruct_jax.jobs.results import check_sound, file_names, read_results
from voxinstruct_jax.jobs.run import run_requests


def requests_named(*ids):
    return [Request(id=each, instruction=f'Say "{each}"') for each in ids]


def run(voice, requests, out, **changes):
    options = {"job_seed": 1, "rejected": [], "report": lambda finished, total: None}
    return run_requests(voice, requests, out, **{**options, **changes})


def without_timings(results):
    return [dataclasses.replace(result, timings={}) for result in results]


def test_every_request_leaves_a_sound_and_a_row(tmp_path, fake_voice):
    request = Request(
        id="a/1",
        instruction='Say "yes"',
        transcript="yes",
        language="zh",
        seed=9,
        guidance=Guidance(text_on_semantic=0.0),
        max_duration_s=0.25,
        attributes={"stress": [0]},
    )
    voice = fake_voice()
    [result] = run(voice, [request], tmp_path)
    sound = tmp_path / result.audio
    samples, rate = soundfile.read(sound)
    assert (len(samples), rate) == (250, 1000)
    assert voice.spoken[0][2]["guidance"] == Guidance(text_on_semantic=0.0)
    [row] = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert {name: row[name] for name in row if name != "timings"} == {
        "id": "a/1",
        "status": "done",
        "instruction": 'Say "yes"',
        "transcript": "yes",
        "language_asked": "zh",
        "language_predicted": "zh",
        "prompt": None,
        "audio": "audio/a%2F1.wav",
        "audio_sha256": hashlib.sha256(sound.read_bytes()).hexdigest(),
        "duration_s": 0.25,
        "finish_reason": "stop",
        "attempts": 1,
        "seed": 9,
        "checks": [],
        "error": None,
        "notes": ["a note"],
        "attributes": '{"stress": [0]}',
    }
    assert row["timings"]["synthesis_s"] >= 0
    assert read_results(tmp_path) == [result]


def test_a_bad_request_becomes_a_failed_row_and_the_job_goes_on(tmp_path, fake_voice):
    voice = fake_voice(faults={'Say "b"': InputError("too odd"), 'Say "c"': RuntimeError("boom\nlong trace")})
    results = run(voice, requests_named("a", "b", "c", "d"), tmp_path)
    assert [result.status for result in results] == ["done", "failed", "failed", "done"]
    assert [result.error for result in results] == [None, "too odd", "RuntimeError: boom", None]
    assert results[1].finish_reason == "error"
    assert results[1].audio is None
    assert read_results(tmp_path) == results
    assert sorted(path.name for path in (tmp_path / "audio").iterdir()) == ["a.wav", "d.wav"]


def test_a_request_without_a_seed_gets_the_derived_one(tmp_path, fake_voice):
    voice = fake_voice()
    run(voice, requests_named("a", "b"), tmp_path, job_seed=4)
    assert [seed for _, seed, _ in voice.spoken] == [derive_seed(4, "a"), derive_seed(4, "b")]


def test_a_stopped_job_goes_on_where_it_stopped_and_ends_as_an_unbroken_one(tmp_path, fake_voice):
    requests = requests_named("a", "b", "c", "d")
    with pytest.raises(KeyboardInterrupt):
        run(fake_voice(faults={'Say "c"': KeyboardInterrupt()}), requests, tmp_path / "broken")
    assert not (tmp_path / "broken" / "results.parquet").exists()
    voice, seen = fake_voice(), []
    results = run(voice, requests, tmp_path / "broken", report=lambda *counts: seen.append(counts))
    assert [instruction for instruction, *_ in voice.spoken] == ['Say "c"', 'Say "d"']
    assert seen == [(2, 4), (3, 4), (4, 4)]
    assert without_timings(results) == without_timings(run(fake_voice(), requests, tmp_path / "unbroken"))


def test_finished_requests_are_never_spoken_again_failed_ones_included(tmp_path, fake_voice):
    requests = requests_named("a", "b")
    first = run(fake_voice(faults={'Say "b"': InputError("no")}), requests, tmp_path)
    voice = fake_voice()
    assert run(voice, requests, tmp_path) == first
    assert voice.spoken == []


def test_a_lost_sound_is_spoken_again(tmp_path, fake_voice):
    requests = requests_named("a", "b")
    first = run(fake_voice(), requests, tmp_path)
    (tmp_path / "audio" / "a.wav").unlink()
    voice = fake_voice()
    assert without_timings(run(voice, requests, tmp_path)) == without_timings(first)
    assert len(voice.spoken) == 1


def test_half_written_files_of_a_killed_job_are_cleared_away(tmp_path, fake_voice):
    run(fake_voice(), requests_named("a"), tmp_path)
    for torn in ("audio/.b.part.wav", "done/.x.json.partial"):
        (tmp_path / torn).write_bytes(b"torn")
    run(fake_voice(), requests_named("a"), tmp_path)
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize(
    ("voice_name", "job_seed", "instruction", "message"),
    [
        ("other", 1, 'Say "a"', "another job \\(its voice differs"),
        ("fake 1", 2, 'Say "a"', "another job \\(its job_seed differs"),
        ("fake 1", 1, "Say another thing", "another request with id 'a'"),
    ],
)
def test_a_folder_of_another_job_is_refused(tmp_path, fake_voice, voice_name, job_seed, instruction, message):
    run(fake_voice(), requests_named("a"), tmp_path)
    voice = fake_voice(voice_name)
    with pytest.raises(InputError, match=message):
        run(voice, [Request(id="a", instruction=instruction)], tmp_path, job_seed=job_seed)
    assert voice.spoken == []


def test_a_folder_that_cannot_be_made_stops_the_job_before_it_speaks(tmp_path, fake_voice):
    (tmp_path / "file").touch()
    voice = fake_voice()
    with pytest.raises(InputError, match="cannot be written"):
        run(voice, requests_named("a"), tmp_path / "file" / "out")
    assert voice.spoken == []


def test_rejected_rows_are_listed(tmp_path, fake_voice):
    run(fake_voice(), [], tmp_path, rejected=[RejectedRequest(row=3, id="é", reason="no")])
    [line] = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"row": 3, "id": "é", "reason": "no"}
    assert read_results(tmp_path) == []


def test_samples_that_are_no_numbers_fail_the_request(tmp_path, fake_voice):
    [result] = run(fake_voice(samples=np.array([0.1, np.nan])), requests_named("a"), tmp_path)
    assert result.status == "failed"
    assert "not numbers" in result.error


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.zeros(1000), ("silent",)),
        (np.full(1000, 0.0009), ("silent",)),
        (np.zeros(0), ("silent",)),
        (np.full(1000, 0.5), ()),
        (np.where(np.arange(1000) < 1, 1.0, 0.1), ()),
        (np.where(np.arange(1000) < 5, -1.2, 0.1), ("clipped",)),
    ],
)
def test_silence_and_clipping_are_noted(samples, expected):
    assert check_sound(samples.astype(np.float32)) == expected


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), unique=True, max_size=8))
def test_file_names_are_safe_and_distinct_even_without_case(ids):
    names = file_names(ids)
    assert len({name.lower() for name in names.values()}) == len(ids)
    for name in names.values():
        assert name.isascii()
        assert not set(name) & set('/\\:*?"<>| \0')
        assert not name.startswith(".")


def test_ids_that_differ_in_case_or_are_long_keep_names_of_their_own():
    ids = ["Clip", "clip", "../x", "x" * 500, "x" * 499 + "y", "plain-1"]
    names = file_names(ids)
    assert names["plain-1"] == "plain-1"
    assert names["../x"] == "%2E.%2Fx"
    assert len({name.lower() for name in names.values()}) == len(ids)
    assert max(map(len, names.values())) < 200
