import time
import tracemalloc

import av
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


def chirp(seconds, sample_rate):
    """A tone that rises, so that each moment sounds different."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.4 * np.sin(2 * np.pi * (200 + 150 * time) * time)).astype(np.float32)


def encode(path, samples, sample_rate, codec, container):
    """Writes what soundfile cannot, by PyAV."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = sample_rate
        form = stream.codec_context.format.name
        resampler = av.AudioResampler(form, "mono", sample_rate, frame_size=1024 if codec == "aac" else None)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))


@pytest.mark.parametrize(("suffix", "codec", "container"), [(".g722", "g722", "g722"), (".m4a", "aac", "ipod")])
def test_formats_beyond_libsndfile_are_read_whole_and_by_parts(tmp_path, suffix, codec, container):
    path = tmp_path / f"rede 今天{suffix}"
    encode(path, chirp(6, 16_000), 16_000, codec, container)
    whole = read_audio(path, 16_000)
    assert len(whole) == pytest.approx(6 * 16_000, abs=2048)
    assert main_frequency(whole[32_000:33_000], 16_000) == pytest.approx(200 + 2 * 150 * 2.03, abs=40)
    for offset_s, duration_s in [(0.0, 1.0), (0.5, 2.0), (3.3, 1.5), (5.0, None)]:
        part = read_audio(path, 16_000, offset_s=offset_s, duration_s=duration_s)
        start = round(offset_s * 16_000)
        np.testing.assert_array_equal(part, whole[start:][: len(part)])
        assert len(part) == (round(duration_s * 16_000) if duration_s else len(whole) - start)
    with pytest.raises(InputError, match=r"lasts 6\.\d+ s, the row asks for 5 to 9 s"):
        read_audio(path, 16_000, offset_s=5.0, duration_s=4.0)
    with pytest.raises(InputError, match=r"6 s are more than a clip may last \(5 s\)"):
        read_audio(path, 16_000, limit_s=5.0)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_part_is_what_the_whole_file_has_there(tmp_path, suffix):
    soundfile.write(tmp_path / f"long{suffix}", chirp(20, 24_000), 24_000)
    whole = read_audio(tmp_path / f"long{suffix}", 24_000)
    for offset_s, duration_s in [(0.25, 1.0), (3.3, 1.5), (5.0, None)]:
        part = read_audio(tmp_path / f"long{suffix}", 24_000, offset_s=offset_s, duration_s=duration_s)
        np.testing.assert_allclose(part, whole[round(offset_s * 24_000) :][: len(part)], atol=1e-6)
        assert duration_s is None or len(part) == round(duration_s * 24_000)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize(("sample_rate", "channels"), [(8000, 1), (48_000, 6)])
def test_wav_of_any_kind_is_read(tmp_path, subtype, sample_rate, channels):
    tones = np.stack([tone(300, 0.3, sample_rate)] * channels, axis=1)
    soundfile.write(tmp_path / "a b.wav", tones, sample_rate, subtype=subtype)
    found = read_audio(tmp_path / "a b.wav", 24_000)
    assert len(found) == pytest.approx(7200, abs=2)
    assert main_frequency(found, 24_000) == pytest.approx(300, abs=8)


def with_data_size(path, number):
    """Changes what a WAV header says of the bytes that follow."""
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("promised", [0, 2**31 - 1, 2**32 - 1])
def test_a_streamed_wav_whose_length_was_never_filled_in_is_read_to_its_end(tmp_path, promised):
    samples = tone(440, 0.5, 24_000)
    soundfile.write(tmp_path / "streamed.wav", samples, 24_000)
    with_data_size(tmp_path / "streamed.wav", promised)
    np.testing.assert_allclose(read_audio(tmp_path / "streamed.wav", 24_000), samples, atol=1e-4)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), 24_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"half\.\w+: (cut short|not readable as sound)"):
        read_audio(path, 24_000)


def test_three_hours_are_refused_unread_and_a_part_of_them_is_found(tmp_path):
    hours, rate = 3, 8000
    with soundfile.SoundFile(tmp_path / "long.wav", "w", rate, 1, subtype="PCM_U8") as file:
        for _ in range(hours * 60):
            file.write(np.zeros(60 * rate, np.float32))
        file.seek(2 * 3600 * rate)
        file.write(tone(440, 1.0, rate))
    tracemalloc.start()
    with pytest.raises(InputError, match="10800 s are more than a clip may last"):
        read_audio(tmp_path / "long.wav", 8000, limit_s=120.0)
    part = read_audio(tmp_path / "long.wav", 8000, offset_s=7200.0, duration_s=1.0, limit_s=120.0)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()
    assert main_frequency(part, rate) == pytest.approx(440, abs=2)


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


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus"])
def test_written_files_carry_their_tag_and_nothing_else_is_left(tmp_path, suffix):
    path = tmp_path / "new" / f"said{suffix}"
    write_audio(path, tone(440, 0.3, 24_000), 24_000, tag="synthetic speech; tiny; seed 7")
    with soundfile.SoundFile(path) as file:
        assert file.comment == "synthetic speech; tiny; seed 7"
        assert (file.samplerate, file.channels) == (24_000, 1)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".opus"])
def test_the_same_sound_is_the_same_file_at_another_time(tmp_path, suffix):
    for name in ("one", "two"):
        write_audio(tmp_path / f"{name}{suffix}", tone(440, 0.3, 24_000), 24_000, tag="x")
        time.sleep(1.01 if suffix != ".flac" else 0)  # libsndfile draws serial numbers from the clock's seconds
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    assert len(read_audio(tmp_path / f"one{suffix}", 24_000)) == pytest.approx(7200, abs=1)


def test_opus_of_a_rate_that_it_does_not_know_is_resampled(tmp_path):
    write_audio(tmp_path / "a.opus", tone(440, 0.5, 22_050), 22_050, tag="x")
    assert soundfile.info(tmp_path / "a.opus").samplerate == 48_000


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
