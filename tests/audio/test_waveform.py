import numpy as np
import pytest
import soundfile

from voxinstruct_jax.audio.waveform import read_audio, resample, write_audio
from voxinstruct_jax.config import InputError


def tone(hz, seconds, sample_rate):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * sample_rate)) / sample_rate)).astype(np.float32)


def main_frequency(samples, sample_rate):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * sample_rate / len(samples)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.05), (".mp3", 0.05)])
def test_common_formats_are_read(tmp_path, suffix, tolerance):
    samples = tone(440, 0.5, 24_000)
    soundfile.write(tmp_path / f"tone{suffix}", samples, 24_000)
    found = read_audio(tmp_path / f"tone{suffix}", 24_000)
    assert found.dtype == np.float32
    assert abs(len(found) - len(samples)) <= 1152  # an MP3 frame
    middle = slice(3000, 9000)
    assert main_frequency(found[middle], 24_000) == pytest.approx(440, abs=4)
    assert np.sqrt(np.mean(found[middle] ** 2)) == pytest.approx(0.5 / np.sqrt(2), abs=tolerance)


def test_stereo_of_another_rate_is_averaged_and_resampled(tmp_path):
    left, right = tone(500, 1.0, 44_100), tone(1500, 1.0, 44_100)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), 44_100, subtype="FLOAT")
    found = read_audio(tmp_path / "two.wav", 24_000)
    assert len(found) == 24_000
    expected = (tone(500, 1.0, 24_000) + tone(1500, 1.0, 24_000)) / 2
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=2e-3)


def test_resampling_to_the_same_rate_changes_nothing():
    samples = tone(100, 0.1, 8000)
    assert resample(samples, 8000, 8000) is samples


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "clip.wav: no such audio file"),
        (b"", "clip.wav: not readable as sound"),
        (b"RIFF but not really a sound file", "clip.wav: not readable as sound"),
    ],
)
def test_a_file_that_is_no_sound_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "clip.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_audio(path, 24_000)
    assert "\n" not in str(caught.value)


def test_a_sound_file_without_samples_or_with_broken_ones_is_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 24_000)
    with pytest.raises(InputError, match=r"none\.wav: holds no samples"):
        read_audio(tmp_path / "none.wav", 24_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32), 24_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"nan\.wav: holds samples that are not numbers"):
        read_audio(tmp_path / "nan.wav", 24_000)
    with pytest.raises(InputError, match="no such audio file"):
        read_audio(tmp_path, 24_000)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_written_files_carry_their_tag_and_nothing_else_is_left(tmp_path, suffix):
    path = tmp_path / "new" / f"said{suffix}"
    write_audio(path, tone(440, 0.3, 24_000), 24_000, tag="synthetic speech; tiny; seed 7")
    with soundfile.SoundFile(path) as file:
        assert file.comment == "synthetic speech; tiny; seed 7"
        assert (file.samplerate, file.channels) == (24_000, 1)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap(tmp_path):
    write_audio(tmp_path / "loud.wav", np.array([1.5, -1.5, 0.5], np.float32), 24_000, tag="x")
    np.testing.assert_allclose(read_audio(tmp_path / "loud.wav", 24_000), [1, -1, 0.5], atol=1e-4)


@pytest.mark.parametrize("name", ["file/said.wav", "said.nonsense", "said"])
def test_a_target_that_cannot_be_written_leaves_nothing_behind(tmp_path, name):
    (tmp_path / "file").write_bytes(b"a file where a folder should be")
    with pytest.raises(InputError, match=r"cannot be written .*; choose another folder or suffix") as caught:
        write_audio(tmp_path / name, tone(440, 0.1, 24_000), 24_000, tag="x")
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_older_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "said.wav"
    write_audio(path, tone(440, 0.1, 24_000), 24_000, tag="old")
    before = path.read_bytes()

    def full_disk(*_):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        write_audio(path, tone(880, 0.1, 24_000), 24_000, tag="new")
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["said.wav"]
