import dataclasses
import functools
import hashlib
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))
import jobs_for_tests
from fake_voice import FakeVoice
from jobs_for_tests import files, lasting, rows_named, run, write_requests

from voxinstruct_jax.config import InputError
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.jobs.requests import derive_seed
from voxinstruct_jax.jobs.results import read_results
from voxinstruct_jax.jobs.run import in_this_process
from voxinstruct_jax.jobs.units import try_seed

HERE = Path(__file__).parent


def job(tmp_path, voice, *ids, out="out", **options):
    requests = write_requests(tmp_path / "r.jsonl", rows_named(*ids))
    return run(requests, tmp_path / out, lambda: voice, **options)


def no_rest(out):
    """Nothing half-written and nothing of work in progress is left."""
    left = [
        name
        for name in files(out)
        if name.split("/")[0] in ("partial", "claims", "workers") or "part" in Path(name).suffix[1:4]
    ]
    return [name for name in left if not name.endswith(".parquet")] == []


# --- one request -----------------------------------------------------------------------------------------------------


def test_every_request_leaves_a_sound_and_a_row(tmp_path):
    row = {
        "id": "a/1",
        "instruction": 'Say "yes"',
        "transcript": "yes",
        "language": "zh",
        "seed": 9,
        "guidance": [0.0, 1.0, 1.0],
        "max_duration_s": 0.25,
        "attributes": {"stress": [0]},
    }
    voice, out = FakeVoice(), tmp_path / "out"
    [result] = run(write_requests(tmp_path / "r.jsonl", [row]), out, lambda: voice)
    sound = out / result.audio
    samples, rate = soundfile.read(sound)
    assert (len(samples), rate) == (2000, 8000)
    with soundfile.SoundFile(sound) as file:
        assert file.comment.startswith("synthetic speech")
    assert voice.spoken[0].guidance == Guidance(text_on_semantic=0.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)
    [found] = pyarrow.parquet.read_table(out / "results.parquet").to_pylist()
    assert {name: found[name] for name in found if name not in ("timings", "measures")} == {
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
    assert found["timings"]["synthesis_s"] >= 0
    assert found["measures"]["syllables"] == 1
    assert read_results(out) == [result]


def test_a_bad_request_becomes_a_failed_row_and_the_job_goes_on(tmp_path):
    voice = FakeVoice(faults={'Say "b"': InputError("too odd"), 'Say "c"': RuntimeError("boom\nlong trace")}, ahead=3)
    results = job(tmp_path, voice, "a", "b", "c", "d")
    assert [result.status for result in results] == ["done", "failed", "failed", "done"]
    assert [result.error for result in results] == [None, "too odd", "RuntimeError: boom", None]
    assert results[1].finish_reason == "error"
    assert results[1].audio is None
    assert sorted(path.name for path in (tmp_path / "out/audio").iterdir()) == ["a.wav", "d.wav"]


def test_a_request_without_a_seed_gets_the_derived_one(tmp_path):
    results = job(tmp_path, FakeVoice(), "a", "b", job_seed=4)
    assert [result.seed for result in results] == [derive_seed(4, "a"), derive_seed(4, "b")]


def test_samples_that_are_no_numbers_fail_the_request(tmp_path):
    [result] = job(tmp_path, FakeVoice(samples=np.array([0.1, np.nan])), "a")
    assert result.status == "failed"
    assert "not numbers" in result.error


def test_a_job_with_nothing_but_rejected_rows_ends(tmp_path):
    assert run(write_requests(tmp_path / "r.jsonl", [{"seed": 1}]), tmp_path / "out", FakeVoice) == []
    [line] = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {"row": 1, "id": "", "reason": "id: missing"}


def test_a_row_that_cannot_be_spoken_fails_with_its_reason(tmp_path):
    rows = [{"id": "a", "instruction": 'Say "a"', "guidance": [1, 2]}, *rows_named("b")]
    failed, done = run(write_requests(tmp_path / "r.jsonl", rows), tmp_path / "out", FakeVoice)
    assert (failed.id, failed.status, failed.audio, failed.instruction) == ("a", "failed", None, 'Say "a"')
    assert failed.error.startswith("row 1: guidance: expected [text_on_semantic")
    assert (done.id, done.status) == ("b", "done")


# --- the same whatever the way ---------------------------------------------------------------------------------------


def test_results_depend_on_neither_order_nor_units_nor_neighbours(tmp_path):
    ids = [f"id-{number}" for number in range(12)]
    expected = job(tmp_path, FakeVoice(), *ids, out="one")
    assert len({result.audio_sha256 for result in expected}) > 5
    shuffled = random.Random(0).sample(ids, len(ids))
    found = job(tmp_path, FakeVoice(ahead=5), *shuffled, out="two", unit_size=4)
    assert lasting(found) == lasting(expected)
    assert [name for name in files(tmp_path / "two") if name.startswith("audio/")] == [
        f"audio/{each}.wav" for each in sorted(ids)
    ]
    assert no_rest(tmp_path / "two")


def test_a_finished_job_is_not_done_again_failed_requests_included(tmp_path):
    first = job(tmp_path, FakeVoice(faults={'Say "b"': InputError("no")}), "a", "b")
    voice = FakeVoice()
    assert job(tmp_path, voice, "a", "b") == first
    assert voice.spoken == []


def test_a_stopped_job_goes_on_where_it_stopped_and_ends_as_an_unbroken_one(tmp_path):
    ids = "abcdef"
    voice = FakeVoice(faults={f'Say "{each}"': KeyboardInterrupt() for each in "de"})
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, voice, *ids)
    spoken = {utterance.instruction for utterance in voice.spoken}
    assert not (tmp_path / "out/results.parquet").exists()
    assert not [name for name in files(tmp_path / "out") if name.startswith("claims/")]
    assert json.loads((tmp_path / "out/job.json").read_text())["state"] == "stopped"
    parts = any((tmp_path / "out/results").glob("*.parquet"))  # none if it was stopped in its first unit
    committed = {result.instruction for result in read_results(tmp_path / "out")} if parts else set()
    again, seen = FakeVoice(), []
    results = job(tmp_path, again, *ids, report=lambda progress: seen.append(progress.figures()["finished"]))
    assert {utterance.instruction for utterance in again.spoken} == {f'Say "{each}"' for each in ids} - committed
    assert committed <= spoken
    assert (seen[0], seen[-1]) == (len(committed), 6)
    assert lasting(results) == lasting(job(tmp_path, FakeVoice(), *ids, out="unbroken"))
    assert no_rest(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "ids", "voice", "message"),
    [
        ({}, "ab", FakeVoice("other"), r"another job \(its voice differs"),
        ({"job_seed": 2}, "ab", FakeVoice(), r"another job \(its job_seed differs"),
        ({"format": "flac", "attempts": 1}, "ab", FakeVoice(), r"another job \(its format, attempts differs"),
        ({}, "abc", FakeVoice(), r"another job \(its request file differs"),
    ],
)
def test_a_folder_of_another_job_is_refused(tmp_path, changes, ids, voice, message):
    job(tmp_path, FakeVoice(), "a", "b")
    with pytest.raises(InputError, match=message):
        job(tmp_path, voice, *ids, **changes)
    assert voice.spoken == []


# --- killed processes ------------------------------------------------------------------------------------------------


def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(tmp_path):
    ids = [f"r{number}" for number in range(60)]
    requests = write_requests(tmp_path / "r.jsonl", rows_named(*ids))
    command = [sys.executable, HERE / "jobs_for_tests.py", requests, tmp_path / "out"]
    chance, kills, parts = random.Random(1), 0, {}
    while not (tmp_path / "out/results.parquet").exists():
        process = subprocess.Popen(command, cwd=HERE)
        started = len(list((tmp_path / "out/results").glob("*")))
        # Killed a moment after it has begun to commit, but for the last time.
        until = time.monotonic() + 60
        while kills < 3 and process.poll() is None and time.monotonic() < until:
            if len(list((tmp_path / "out/results").glob("*"))) > started + 1:
                time.sleep(chance.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
                kills += 1
        process.wait()
        for part in (tmp_path / "out/results").glob("*"):  # what is committed stays as it is
            assert parts.setdefault(part.name, part.read_bytes()) == part.read_bytes()
    assert kills >= 2
    found = sorted(read_results(tmp_path / "out"), key=lambda result: result.id)
    assert lasting(found) == lasting(run(requests, tmp_path / "unbroken", jobs_for_tests.slow_voice))
    for result in found:
        assert hashlib.sha256((tmp_path / "out" / result.audio).read_bytes()).hexdigest() == result.audio_sha256
    assert len(list((tmp_path / "out/audio").iterdir())) == 60
    assert no_rest(tmp_path / "out")


def test_a_request_that_ends_its_process_fails_alone(tmp_path):
    from voxinstruct_jax.jobs.processes import in_processes

    ids, said = [f"r{number}" for number in range(4)], []
    requests = write_requests(tmp_path / "r.jsonl", rows_named(*ids))
    (tmp_path / "deaths").mkdir()
    open_voice = functools.partial(jobs_for_tests.deadly_voice, str(tmp_path / "deaths"), 'Say "r2"', 9)
    results = run(
        requests, tmp_path / "out", open_voice, engine=in_processes(1, 1, say=said.append), unit_size=4, lease_s=60.0
    )
    assert [result.status for result in results] == ["done", "done", "failed", "done"]
    assert "2 worker processes ended while it was spoken" in results[2].error
    assert len(list((tmp_path / "deaths").iterdir())) == len(said) == 4
    assert no_rest(tmp_path / "out")


def test_two_processes_give_what_one_gives(tmp_path):
    from voxinstruct_jax.jobs.processes import in_processes

    requests = write_requests(tmp_path / "r.jsonl", rows_named(*[f"r{number}" for number in range(16)]))
    found = run(
        requests, tmp_path / "two", jobs_for_tests.slow_voice, engine=in_processes(2, 1, say=print), unit_size=2
    )
    assert lasting(found) == lasting(run(requests, tmp_path / "one", FakeVoice))
    assert no_rest(tmp_path / "two")


def test_an_error_of_a_worker_is_told(tmp_path):
    from voxinstruct_jax.jobs.processes import in_processes

    requests = write_requests(tmp_path / "r.jsonl", rows_named("a"))
    run(requests, tmp_path / "out", functools.partial(FakeVoice, "other"), unit_size=1)
    (tmp_path / "out/results.parquet").unlink()
    next((tmp_path / "out/results").iterdir()).unlink()
    with pytest.raises(InputError, match="its voice differs"):
        run(requests, tmp_path / "out", FakeVoice, engine=in_processes(1, 1, say=print))


# --- quality ---------------------------------------------------------------------------------------------------------


def test_a_faulty_sound_is_tried_again_with_another_seed_and_the_first_good_one_is_kept(tmp_path):
    seed = derive_seed(0, "a")
    voice = FakeVoice(finish=lambda utterance: "stop" if utterance.seed == try_seed(seed, 2) else "max_acoustic")
    [result] = job(tmp_path, voice, "a", attempts=5)
    assert [utterance.seed for utterance in voice.spoken] == [try_seed(seed, number) for number in range(3)]
    assert (result.status, result.attempts, result.seed, result.checks) == ("done", 3, try_seed(seed, 2), ())
    assert 0 < result.timings["discarded_s"] < result.timings["synthesis_s"]


def test_a_request_whose_every_try_is_faulty_is_quarantined_with_its_best_sound(tmp_path):
    seed = derive_seed(0, "b")
    quiet = 0.0015 * np.sin(np.arange(4000) / 3)
    voice = FakeVoice(
        finish=lambda utterance: "stop" if utterance.seed == try_seed(seed, 1) else "max_total", samples=quiet
    )
    results = job(tmp_path, voice, "b", attempts=2)
    [result] = results
    assert (result.status, result.attempts, result.checks) == ("quarantined", 2, ("quiet",))
    assert result.seed == try_seed(seed, 1)
    assert files(tmp_path / "out/quarantine") == ["b.wav"]
    assert not (tmp_path / "out/audio").exists()


def test_of_several_candidates_the_one_nearest_to_the_expected_length_is_kept(tmp_path, monkeypatch):
    class Deaf:
        fingerprint = "deaf"

        def transcribe(self, samples, sample_rate, language=None):
            return "aye"

    monkeypatch.setattr("voxinstruct_jax.jobs.quality.load_asr", lambda **_: Deaf())
    voice = FakeVoice(ahead=2)
    [result] = job(tmp_path, voice, "aye", candidates=4)
    durations = {utterance.seed: 0.3 + 0.1 * (utterance.seed % 5) for utterance in voice.spoken}
    assert len(durations) == result.attempts == 4
    assert result.duration_s == pytest.approx(min(durations.values()))
    assert result.measures["wer"] == 0


def test_what_the_judge_hears_decides(tmp_path, monkeypatch):
    class Parrot:
        fingerprint = "parrot"
        heard = iter(["wrong words", "well done"])

        def transcribe(self, samples, sample_rate, language=None):
            return next(self.heard)

    monkeypatch.setattr("voxinstruct_jax.jobs.quality.load_asr", lambda **_: Parrot())
    [result] = job(tmp_path, FakeVoice(), "well done", max_wer=0.4)
    assert (result.status, result.attempts, result.measures["wer"]) == ("done", 2, 0)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["flac", "opus"])
def test_shards_hold_sounds_and_rows_and_are_the_same_each_time(tmp_path, form):
    ids = ["a", "B.c", "b.c"]
    voice = FakeVoice(faults={'Say "a"': InputError("no")})
    results = job(tmp_path, voice, *ids, shards=True, format=form, unit_size=3, out="one")
    job(tmp_path, voice, *ids, shards=True, format=form, unit_size=3, out="two")
    [shard] = (tmp_path / "one/shards").iterdir()
    assert shard.read_bytes() == (tmp_path / "two/shards" / shard.name).read_bytes()
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    assert len(members) == 4
    assert all(name.count(".") == 1 for name in members)
    for result in filter(lambda result: result.audio, results):
        name = result.audio.removeprefix(f"shards/{shard.name}/")
        assert hashlib.sha256(members[name]).hexdigest() == result.audio_sha256
        assert json.loads(members[f"{Path(name).stem}.json"])["id"] == result.id
    assert [result.status for result in results] == ["done", "failed", "done"]  # B.c, a, b.c


def test_loudness_is_set_as_far_as_peaks_allow(tmp_path):
    tone = 0.01 * np.sin(2 * np.pi * 1000 * np.arange(24_000) / 8000)
    [result] = job(tmp_path, FakeVoice(samples=tone), "a", loudness_lufs=-23.0, out="low")
    assert result.measures["loudness_lufs"] == pytest.approx(-23, abs=0.1)
    samples, _ = soundfile.read(tmp_path / "low" / result.audio)
    assert 20 * np.log10(np.sqrt(np.mean(samples**2))) == pytest.approx(-23, abs=1.5)  # at 1 kHz the weighting is 1 dB
    [result] = job(tmp_path, FakeVoice(samples=tone), "a", loudness_lufs=0.0, out="high")
    samples, _ = soundfile.read(tmp_path / "high" / result.audio)
    assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)


def test_progress_is_written_down(tmp_path):
    job(tmp_path, FakeVoice(faults={'Say "b"': InputError("no")}), "a", "b", engine=in_this_process)
    found = json.loads((tmp_path / "out/job.json").read_text())
    assert (found["state"], found["voice"], found["requests"], found["done"], found["failed"]) == (
        "finished",
        "fake 1",
        2,
        1,
        1,
    )
    assert found["audio_hours"] > 0
    assert found["left_s"] == 0


def test_a_folder_that_cannot_be_made_stops_the_job_before_it_speaks(tmp_path):
    (tmp_path / "file").touch()
    voice = FakeVoice()
    with pytest.raises(InputError, match="cannot be written"):
        job(tmp_path, voice, "a", out="file/out")
    assert voice.spoken == []


def test_results_of_two_workers_that_differ_are_never_mixed(tmp_path):
    """A worker of another kind of machine, thought dead, commits first: the second one leaves nothing of its own."""
    from concurrent.futures import ThreadPoolExecutor

    from voxinstruct_jax.jobs.commits import commit_unit
    from voxinstruct_jax.jobs.plan import Unit
    from voxinstruct_jax.jobs.results import Result, iter_part
    from voxinstruct_jax.jobs.settings import JobSettings
    from voxinstruct_jax.jobs.store import LocalStore

    store, unit = LocalStore(str(tmp_path)), Unit(name="unit-0", requests=2, syllables=1.0)

    def made(content):
        result = Result(
            id="a",
            status="done",
            instruction="x",
            finish_reason="stop",
            seed=1,
            audio_sha256=hashlib.sha256(content).hexdigest(),
        )
        return [(result, content), (dataclasses.replace(result, id="b"), b"same")]

    with ThreadPoolExecutor(1) as pool:
        store.create("audio/a.wav", b"of a worker that died")
        for content in (b"first", b"second"):
            commit_unit(store, JobSettings(), unit, ["a", "b"], made(content), pool)
    first, _ = iter_part(store, "unit-0")
    assert hashlib.sha256((tmp_path / first.audio).read_bytes()).hexdigest() == hashlib.sha256(b"first").hexdigest()
    assert len(list((tmp_path / "audio").iterdir())) == 3
