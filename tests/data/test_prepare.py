import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.config import InputError, fingerprint
from voxinstruct_jax.data.batches import ClipForm, TokenBatches
from voxinstruct_jax.data.manifest import ManifestRows, Rejection, Row, write_manifest
from voxinstruct_jax.data.plan import BatchConfig
from voxinstruct_jax.data.prepare import BatchResults, instruction_variants, prepare, recount_text
from voxinstruct_jax.data.shard_parts import locked
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.vocabulary import expand


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".array_record", ".jsonl")}


def test_every_row_becomes_an_example_with_its_own_tokens(reader, rows, encoders):
    assert len(reader) == len(rows)
    for record, row in enumerate(rows):
        example = reader[record]
        samples = soundfile.read(row.audio, dtype="float32")[0]
        np.testing.assert_array_equal(example.codes, encoders.acoustic(samples))
        np.testing.assert_array_equal(expand(example.semantic_tokens, example.run_lengths), encoders.semantic(samples))
        assert (example.semantic_tokens[1:] != example.semantic_tokens[:-1]).all()
        assert example.instructions == instruction_variants(row)
        named = (example.id, example.language, example.transcript, example.speaker, example.attributes)
        assert named == (row.id, row.language, row.transcript, row.speaker, row.attributes)


def test_the_index_tells_lengths_without_reading_records(reader, rows, letters):
    index, lengths = reader.index, reader.lengths
    assert index.num_examples == 30
    assert index.languages == {"en": 15, "zh": 15}
    assert [shard.num_examples for shard in index.shards] == [8, 8, 8, 6]
    assert index.hours == pytest.approx(sum(soundfile.info(row.audio).duration for row in rows) / 3600)
    assert index.fingerprints == {"codec": "codec-1", "units": "units-1", "tokenizer": "letters"}
    for record in range(len(reader)):
        example = reader[record]
        assert lengths.frames[record] == example.codes.shape[1]
        assert lengths.semantic[record] == len(example.semantic_tokens)
        counts = lengths.text[lengths.text_offsets[record] : lengths.text_offsets[record + 1]]
        assert counts.tolist() == [len(text) + 1 for text in example.instructions]


def test_the_quoted_transcript_is_the_last_or_only_variant():
    row = Row(id="a", audio="a.wav", language="en", transcript="Hi.", instructions=("Say hi", "Hi!"))
    assert instruction_variants(row) in [("Say hi", "Hi!", '"Hi."'), ("Say hi", "Hi!", "“Hi.”")]
    assert instruction_variants(dataclasses.replace(row, instructions=())) in [('"Hi."',), ("“Hi.”",)]
    quotes = [instruction_variants(dataclasses.replace(row, id=str(number)))[-1][0] for number in range(400)]
    assert 160 < quotes.count("“") < 240


class StopError(Exception):
    pass


def stop_after(encoders, calls):
    """Encoders whose codec fails hard at its call number `calls`."""
    seen = []

    def acoustic(samples):
        if len(seen) == calls:
            raise StopError
        seen.append(1)
        return encoders.acoustic(samples)

    return dataclasses.replace(encoders, acoustic=acoustic), seen


def test_a_killed_run_leaves_whole_shards_only_and_goes_on_to_the_same_files(tmp_path, rows, encoders, reader):
    stopping, _ = stop_after(encoders, 19)
    with pytest.raises(StopError):
        prepare(rows, tmp_path / "out", stopping, shard_size=8, progress=False)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["parts", "prepare.json", "prepare.lock", "shard-00000.array_record", "shard-00001.array_record"]
    for name in left[3:]:
        assert (tmp_path / "out" / name).read_bytes() == (reader.folder / name).read_bytes()
    with pytest.raises(InputError, match="holds no index"):
        ShardReader(tmp_path / "out")
    (tmp_path / "out" / "shard-00002.array_record.partial").write_bytes(b"half a shard")
    counting, seen = stop_after(encoders, 1000)
    resumed = prepare(rows, tmp_path / "out", counting, shard_size=8, progress=False)
    assert len(seen) == 30 - 16
    assert contents(tmp_path / "out") == contents(reader.folder)
    assert resumed.fingerprint == reader.fingerprint
    assert not list((tmp_path / "out").glob("*.partial*"))


KILLED_WHILE_WRITING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import conftest
from voxinstruct_jax.data import prepare, shards
from voxinstruct_jax.data.manifest import read_manifest

encode, seen = shards.encode_example, []

def encode_until_killed(example):
    seen.append(1)
    if len(seen) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(example)

shards.encode_example = encode_until_killed
prepare.prepare(read_manifest(sys.argv[2]), sys.argv[3], conftest.make_encoders(), shard_size=8, progress=False)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_that_counts(tmp_path, rows, encoders, reader):
    write_manifest(tmp_path / "m.jsonl", rows)
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, here, tmp_path / "m.jsonl", tmp_path / "out"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "shard-00000.array_record" in names
    assert "shard-00001.array_record" not in names
    assert [name for name in names if re.match(r"shard-00001\.array_record\..*\.partial$", name)]
    again = prepare(rows, tmp_path / "out", encoders, shard_size=8, progress=False)
    assert again.fingerprint == reader.fingerprint
    assert contents(tmp_path / "out") == contents(reader.folder)


def test_a_finished_run_is_not_redone(reader, rows, encoders):
    stopping, _ = stop_after(encoders, 0)
    assert prepare(rows, reader.folder, stopping, shard_size=8, progress=False).fingerprint == reader.fingerprint


@pytest.mark.parametrize("change", ["codec", "units", "tokenizer", "rows", "shard_size"])
def test_a_folder_of_another_run_is_refused_by_what_differs(reader, rows, encoders, change, letters):
    shard_size = 8
    if change == "tokenizer":
        encoders = dataclasses.replace(encoders, tokenizer=letters(fingerprint="other"))
    elif change == "rows":
        rows = rows[1:]
    elif change == "shard_size":
        shard_size = 9
    else:
        encoders = dataclasses.replace(encoders, fingerprints={**encoders.fingerprints, change: "other"})
    with pytest.raises(InputError, match=f"holds a run with other {change}; give an empty folder"):
        prepare(rows, reader.folder, encoders, shard_size=shard_size, progress=False)


def test_a_folder_that_another_run_is_making_is_refused(tmp_path, rows, encoders):
    with (
        locked(str(tmp_path / "out")),
        pytest.raises(InputError, match=rf"process {os.getpid()} on .* is preparing it; wait for it or stop it"),
    ):
        prepare(rows, tmp_path / "out", encoders, progress=False)
    assert len(prepare(rows, tmp_path / "out", encoders, progress=False)) == len(rows)


def test_a_folder_with_foreign_files_is_refused(tmp_path, rows, encoders):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        prepare(rows, tmp_path, encoders, progress=False)


def test_bad_rows_are_listed_with_their_reason_and_the_rest_goes_on(tmp_path, rows, encoders):
    (tmp_path / "noise.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "short.wav", np.ones(150) / 2, encoders.sample_rate)
    soundfile.write(tmp_path / "long.wav", np.ones(130 * encoders.sample_rate) / 2, encoders.sample_rate)
    soundfile.write(tmp_path / "odd.wav", np.ones(1234) / 2, encoders.sample_rate)
    bad = {
        "missing": (tmp_path / "none.wav", {}, "no such audio file"),
        "unreadable": (tmp_path / "noise.wav", {}, "not readable as sound"),
        "short": (tmp_path / "short.wav", {}, "0.15 s is too short; give at least 0.2 s"),
        "beyond": (
            tmp_path / "odd.wav",
            {"offset_s": 1.0, "duration_s": 0.5},
            "the row asks for 1 to 1.5 s",
        ),
        "mismatch": (tmp_path / "odd.wav", {}, "31 codec frames at 25 Hz but 20 semantic frames at 25 Hz"),
        "long": (tmp_path / "long.wav", {}, "130 s are more than a clip may last (120 s); give each sentence a row"),
    }
    bad_rows = [
        Row(id=name, audio=str(audio), language="en", transcript="x", **more) for name, (audio, more, _) in bad.items()
    ]
    short_units = dataclasses.replace(
        encoders, semantic=lambda samples: encoders.semantic(samples)[: 20 if len(samples) == 1234 else None]
    )
    earlier = Rejection(row=7, id="seven", reason="column 'audio': missing")
    mixed = [*bad_rows, *rows[:3]]
    reader = prepare(mixed, tmp_path / "out", short_units, shard_size=3, rejected=[earlier], progress=False)
    assert [reader[record].id for record in range(len(reader))] == ["clip-0", "clip-1", "clip-2"]
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [item["id"] for item in listed] == ["seven", *bad]
    for item, (_, _, reason) in zip(listed[1:], bad.values(), strict=True):
        assert reason in item["reason"]


def test_durations_are_stored_and_instructions_with_other_words_dropped(tmp_path, rows, timed_encoders):
    said, other = 'He says "CLIP 0" slowly', "He says “clip 1” slowly"
    stressed = 'He says "clip 0" with stress on "clip".'
    written = (other, said, stressed, "clip 0", "“clip zero”")
    first = dataclasses.replace(rows[0], transcript="clip 0", instructions=written)
    reader = prepare([first, *rows[1:6]], tmp_path / "out", timed_encoders, progress=False)
    assert reader[0].instructions == (said, stressed, "“clip zero”", instruction_variants(first)[-1])
    (left_out, _) = (json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert (left_out["id"], left_out["reason"]) == (
        first.id,
        f"{first.audio}: an instruction that says other words than the transcript: {other}",
    )
    assert len(reader) == 6
    for record, row in enumerate([first, *rows[1:6]]):
        samples, example = soundfile.read(row.audio, dtype="float32")[0], reader[record]
        np.testing.assert_array_equal(example.durations, timed_encoders.durations(samples, row.transcript))
        assert example.durations.dtype == np.int16
        assert example.durations.sum() == 2 * example.codes.shape[1]
        counts = reader.lengths.text[reader.lengths.text_offsets[record] : reader.lengths.text_offsets[record + 1]]
        assert counts.tolist() == [len(timed_encoders.tokenizer.encode(text)) for text in example.instructions]


def test_without_a_phone_model_there_are_no_durations_and_all_instructions_stay(tmp_path, rows, timed_encoders):
    row = dataclasses.replace(rows[0], instructions=("Say “something else”",))
    reader = prepare([row], tmp_path / "out", dataclasses.replace(timed_encoders, durations=None), progress=False)
    assert reader[0].durations.shape == (0,)
    assert reader[0].instructions == instruction_variants(row)


def test_a_clip_that_cannot_be_aligned_is_rejected(tmp_path, rows, timed_encoders):
    hasty = dataclasses.replace(rows[0], id="hasty", transcript="far too many words for such a clip " * 5)
    reader = prepare([hasty, rows[1]], tmp_path / "out", timed_encoders, progress=False)
    assert [reader[record].id for record in range(len(reader))] == ["clip-1"]
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "hasty"
    assert "the transcript cannot be spoken in this time; check that it fits the audio" in json.loads(line)["reason"]


def test_nothing_usable_is_an_error(tmp_path, encoders):
    row = Row(id="a", audio=str(tmp_path / "none.wav"), language="en", transcript="x")
    with pytest.raises(InputError, match="all rows were set aside"):
        prepare([row], tmp_path / "out", encoders, progress=False)


def test_offsets_cut_clips_out_of_a_recording(tmp_path, encoders):
    samples = np.random.default_rng(0).integers(-9000, 9000, 3000).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", samples, encoders.sample_rate)
    spans = [(0.0, 1.0), (1.0, 0.5), (1.5, None)]
    cuts = [
        Row(
            id=str(i),
            audio=str(tmp_path / "long.wav"),
            language="en",
            transcript="x",
            offset_s=start,
            duration_s=length,
        )
        for i, (start, length) in enumerate(spans)
    ]
    reader = prepare(cuts, tmp_path / "out", encoders, progress=False)
    pieces = np.split((samples / 32768).astype(np.float32), [1000, 1500])
    for record, piece in enumerate(pieces):
        np.testing.assert_array_equal(reader[record].codes, encoders.acoustic(piece))


def test_clips_are_encoded_in_batches_of_their_bucket_and_come_out_in_the_order_of_the_rows(
    tmp_path, rows, encoders, reader
):
    batches = []

    def encode_all(clips, batch_size):
        batches.append(([len(clip) for clip in clips], batch_size))
        return [encoders.acoustic(clip) for clip in clips]

    codes = BatchResults(encode_all)
    batched = dataclasses.replace(encoders, acoustic=codes, encode_ahead=codes.fill, batch_s=4.0)
    found = prepare(rows, tmp_path / "out", batched, shard_size=8, progress=False)
    assert contents(tmp_path / "out") == contents(reader.folder)
    assert found.fingerprint == reader.fingerprint
    for lengths, batch_size in batches:
        [bucket] = {batched.bucket(length) for length in lengths}
        assert batch_size == {1: 4, 2: 2}[bucket]
        assert 1 <= len(lengths) <= batch_size
    assert sum(len(lengths) for lengths, _ in batches) == len(rows)
    assert len(batches) <= 4 * (4 + 2)


def test_a_batch_result_asked_for_out_of_turn_is_computed_alone():
    sizes = []

    def double(clips, batch_size):
        sizes.append(batch_size)
        return [2 * clip for clip in clips]

    results = BatchResults(double)
    first, second = np.ones(3), np.zeros(3)
    results.fill([first], 5)
    np.testing.assert_array_equal(results(first), 2 * first)
    np.testing.assert_array_equal(results(second), second)
    assert sizes == [5, 1]


def test_the_run_is_the_same_whatever_form_the_manifest_has(tmp_path, rows, encoders, reader):
    named = [dataclasses.replace(row, extra={"note": row.id}, word_times_s=((0.0, 0.1),)) for row in rows]
    write_manifest(tmp_path / "m.parquet", named)
    write_manifest(tmp_path / "m.jsonl", rows)
    stopping, _ = stop_after(encoders, 19)
    with pytest.raises(StopError):
        prepare(ManifestRows(tmp_path / "m.jsonl"), tmp_path / "out", stopping, shard_size=8, progress=False)
    prepare(ManifestRows(tmp_path / "m.parquet"), tmp_path / "out", encoders, shard_size=8, progress=False)
    assert contents(tmp_path / "out") == contents(reader.folder)


def test_bad_rows_of_the_manifest_stand_in_the_same_list(tmp_path, rows, encoders):
    write_manifest(tmp_path / "m.jsonl", rows[:3])
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"id": "no audio"}\nnot json\n')
    manifest = ManifestRows(tmp_path / "m.jsonl")
    found = prepare(manifest, tmp_path / "out", encoders, rejected=manifest.rejected, progress=False)
    assert len(found) == 3
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(item["row"], item["id"]) for item in listed] == [(4, "no audio"), (5, "")]


def test_memory_does_not_grow_with_the_rows(tmp_path, rows, encoders):
    class Many:
        """Rows made on the fly, of which the clips are missing but for the first."""

        def __init__(self, count):
            self.count = count

        def __iter__(self):
            yield rows[0]
            for number in range(self.count):
                yield Row(id=str(number), audio="nowhere/a.wav", language="en", transcript=f"{number} " * 3000)

    def peak(count):
        tracemalloc.start()
        prepare(Many(count), tmp_path / str(count), encoders, shard_size=50, progress=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(50)
    assert peak(1000) < peak(200) + 4_000_000  # the rows alone would take more than 9 MB


def test_a_store_that_does_not_answer_stops_the_run_and_sets_no_row_aside(tmp_path, rows, encoders, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr("voxinstruct_jax.data.store.RETRY_DELAYS_S", (0.0, 0.0))
    memory = fsspec.filesystem("memory")
    remote = []
    for row in rows[:4]:
        name = f"/vox-store/{row.id}.wav"
        memory.pipe(name, pathlib.Path(row.audio).read_bytes())
        remote.append(dataclasses.replace(row, audio=f"memory:/{name}"))
    remote.append(dataclasses.replace(rows[4], audio="memory://vox-store/missing.wav"))
    opened, failing = MemoryFileSystem._open, []

    def unreachable(self, path, *args, **kwargs):
        if path.endswith("clip-2.wav") and len(failing) < 4:
            failing.append(path)
            raise TimeoutError("no answer")
        return opened(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "_open", unreachable)
    with pytest.raises(InputError, match=r"clip-2\.wav: cannot be reached \(no answer\).*run the same command again"):
        prepare(remote, tmp_path / "out", encoders, shard_size=2, progress=False)
    assert len(failing) == 3
    reader = prepare(remote, tmp_path / "out", encoders, shard_size=2, progress=False)
    assert len(failing) == 4
    assert [reader[record].id for record in range(len(reader))] == [row.id for row in rows[:4]]
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert "missing.wav: no such audio file" in json.loads(line)["reason"]


def test_text_is_counted_anew_for_another_tokenizer(tmp_path, rows, encoders, letters):
    class Doubled(letters):
        def encode(self, text):
            return np.repeat(super().encode(text), 2, axis=0)

    before = prepare(rows[:4], tmp_path / "out", encoders, progress=False)
    after = recount_text(tmp_path / "out", Doubled(fingerprint="doubled"))
    np.testing.assert_array_equal(after.lengths.text, 2 * before.lengths.text)
    np.testing.assert_array_equal(after.lengths.frames, before.lengths.frames)
    assert after.index.fingerprints["tokenizer"] == "doubled"
    assert after.fingerprint != before.fingerprint


def at_own_rate(encoders, rate, spare=0):
    """Units that change every second frame, `spare` of them too many."""

    def semantic(samples):
        return np.arange(int(len(samples) * rate / encoders.sample_rate) + spare) // 2 % 20

    return dataclasses.replace(encoders, semantic=semantic, semantic_rate=rate)


def test_units_may_have_a_rate_of_their_own(tmp_path, rows, encoders, vocabulary):
    """As HuBERT's beside EnCodec's: 50 and 75 a second."""
    own = at_own_rate(encoders, 50 / 3)
    reader = prepare(rows, tmp_path / "out", own, progress=False)
    assert (reader.index.frame_rate, reader.index.semantic_rate) == (25.0, 50 / 3)
    for record, row in enumerate(rows):
        example, samples = reader[record], soundfile.read(row.audio, dtype="float32")[0]
        np.testing.assert_array_equal(example.codes, encoders.acoustic(samples))
        np.testing.assert_array_equal(expand(example.semantic_tokens, example.run_lengths), own.semantic(samples))
    config = BatchConfig(rows=2, text_width=200, time_width=300)
    batch = TokenBatches(reader, encoders.tokenizer, vocabulary, config)[0]
    assert batch.tokens.shape == (2, 3, 300)
    with pytest.raises(
        InputError, match=r"tokens at 16\.6667 Hz, codec frames at 25 Hz; aligned timing needs one rate"
    ):
        TokenBatches(reader, encoders.tokenizer, vocabulary, config, form=ClipForm(aligned=True))


@pytest.mark.parametrize(("rate", "spare", "kept"), [(50.0, 3, True), (50.0, 8, False), (25.0, 8, False)])
def test_a_clip_whose_parts_last_differently_is_set_aside(tmp_path, rows, encoders, rate, spare, kept):
    long = [row for row in rows if soundfile.info(row.audio).duration > 0.5][:1]
    if kept:
        assert len(prepare(long, tmp_path / "out", at_own_rate(encoders, rate, spare), progress=False)) == 1
        return
    with pytest.raises(InputError, match="all rows were set aside"):
        prepare(long, tmp_path / "out", at_own_rate(encoders, rate, spare), progress=False)
    reason = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["reason"]
    assert "codec frames at 25 Hz but" in reason
    assert f"semantic frames at {rate:g} Hz" in reason


def test_an_index_without_the_rate_of_units_is_read_and_keeps_its_fingerprint(tmp_path, rows, encoders):
    reader = prepare(rows[:2], tmp_path / "out", encoders, progress=False)
    path = tmp_path / "out" / "index.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name != "semantic_rate"}
    path.write_text(json.dumps(older))
    again = ShardReader(tmp_path / "out")
    assert again.index.semantic_rate is None
    assert again.fingerprint == fingerprint(older)
    assert again.fingerprint != reader.fingerprint
