import numpy as np
import pytest
import soundfile

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data import segments
from voxinstruct_jax.data.segments import FrameTokens, SegmentBatches, build_cache
from voxinstruct_jax.data.steps import read_ahead


@pytest.fixture
def paths(tmp_path):
    """Clips whose samples tell where they come from: clip k ramps from k/10 upwards."""
    found = []
    for number, length in enumerate((500, 80, 300)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, number / 10 + np.arange(length) / 10_000, 1000, subtype="FLOAT")
        found.append(path)
    return found


def test_the_cache_holds_each_clip(paths, tmp_path):
    cache = build_cache(paths, tmp_path / "cache", 1000)
    assert cache.offsets.tolist() == [0, 500, 580, 880]
    np.testing.assert_allclose(cache.clip(2) / 32767, 0.2 + np.arange(300) / 10_000, atol=1 / 32767)


def test_a_finished_cache_is_not_decoded_again(paths, tmp_path):
    build_cache(paths, tmp_path / "cache", 1000)
    for path in paths:
        path.unlink()
    assert len(build_cache(paths, tmp_path / "cache", 1000).samples) == 880
    with pytest.raises(InputError, match="other files or another sample rate"):
        build_cache(paths[:2], tmp_path / "cache", 1000)


def test_a_build_that_was_cut_off_goes_on_to_the_same_cache(paths, tmp_path, monkeypatch):
    whole = build_cache(paths, tmp_path / "whole", 1000)
    monkeypatch.setattr(segments, "CLIPS_A_CHECKPOINT", 1)
    read, seen = segments.read_audio, []

    def read_two_then_stop(path, sample_rate):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path)
        return read(path, sample_rate)

    monkeypatch.setattr(segments, "read_audio", read_two_then_stop)
    with pytest.raises(KeyboardInterrupt):
        build_cache(paths, tmp_path / "cache", 1000)
    with (tmp_path / "cache" / "samples.partial").open("ab") as file:
        file.write(b"half a clip that was not recorded")
    resumed = []
    monkeypatch.setattr(segments, "read_audio", lambda path, rate: resumed.append(path) or read(path, rate))
    cache = build_cache(paths, tmp_path / "cache", 1000)
    assert resumed == [str(paths[2])]
    np.testing.assert_array_equal(cache.samples, whole.samples)
    np.testing.assert_array_equal(cache.offsets, whole.offsets)


def test_unreadable_clips_are_named_and_never_drawn(paths, tmp_path):
    paths[0].write_bytes(b"no sound")
    cache = build_cache(paths, tmp_path / "cache", 1000)
    [(name, reason)] = cache.rejected
    assert name == str(paths[0])
    assert "not readable as sound" in reason
    crops = np.concatenate([SegmentBatches(cache, 50, 8, 0)[step].samples for step in range(10)])
    assert crops.min() > 0.09
    for path in paths:
        path.unlink()
    with pytest.raises(InputError, match="none of the 3 clips could be read"):
        build_cache(paths, tmp_path / "empty", 1000)


def test_crops_are_whole_pieces_of_one_clip_and_short_clips_end_in_zeros(paths, tmp_path):
    cache = build_cache(paths, tmp_path / "cache", 1000)
    batches = SegmentBatches(cache, 100, 16, seed=1)
    drawn = set()
    for crop in np.concatenate([batches[step].samples for step in range(10)]):
        clip = int(crop[0] * 10 + 1e-3)
        drawn.add(clip)
        length = 80 if clip == 1 else 100
        np.testing.assert_allclose(np.diff(crop[:length]), 1e-4, atol=1e-4)
        assert not crop[length:].any()
    assert drawn == {0, 1, 2}


def test_batches_depend_on_seed_and_step_only(paths, tmp_path):
    cache = build_cache(paths, tmp_path / "cache", 1000)
    batches = SegmentBatches(cache, 64, 8, seed=5, gain_db=6.0)
    halves = [SegmentBatches(cache, 64, 8, seed=5, gain_db=6.0, host_rows=rows)[3] for rows in ((0, 4), (4, 8))]
    np.testing.assert_array_equal(batches[3].samples, np.concatenate([half.samples for half in halves]))
    for step, ahead in enumerate(read_ahead(batches, start_step=2, num_steps=3), 2):
        np.testing.assert_array_equal(ahead.samples, batches[step].samples)
    assert (batches[3].samples != batches[4].samples).any()
    assert (batches[3].samples != SegmentBatches(cache, 64, 8, seed=6, gain_db=6.0)[3].samples).any()
    assert batches[3].units.shape == (8, 0)


def test_crops_with_units_begin_with_a_frame_and_have_the_units_of_their_clip(paths, tmp_path):
    """Frames of 20 samples; of clip k, frame f says 100 k + f, and its samples tell both."""
    cache = build_cache(paths, tmp_path / "cache", 1000)
    units = FrameTokens(
        units=[100 * clip + np.arange(frames) for clip, frames in enumerate((25, 4, 15))], frame_samples=20
    )
    batches = SegmentBatches(cache, 100, 8, seed=1, tokens=units)
    starts = set()
    for step in range(40):
        batch = batches[step]
        assert batch.samples.shape == (8, 100)
        assert (batch.units.shape, batch.units.dtype) == ((8, 5), np.int32)
        for crop, said in zip(batch.samples, batch.units, strict=True):
            clip = int(crop[0] * 10 + 1e-3)
            start = round((crop[0] - clip / 10) * 10_000)
            assert start % 20 == 0
            starts.add((clip, start))
            expected = 100 * clip + start // 20 + np.arange(5)
            expected[4 if clip == 1 else 5 :] = -1  # clip 1 has four frames: of silence after a clip nothing is known
            np.testing.assert_array_equal(said, expected)
    assert {start for clip, start in starts if clip == 1} == {0}
    assert max(start for clip, start in starts if clip == 0) == 400
    assert max(start for clip, start in starts if clip == 2) == 200


def test_hosts_share_the_units_of_a_step(paths, tmp_path):
    cache = build_cache(paths, tmp_path / "cache", 1000)
    units = FrameTokens(units=[np.arange(25), np.arange(4), np.arange(15)], frame_samples=20)
    whole = SegmentBatches(cache, 60, 8, seed=5, tokens=units)[3]
    halves = [SegmentBatches(cache, 60, 8, seed=5, tokens=units, host_rows=rows)[3] for rows in ((0, 4), (4, 8))]
    np.testing.assert_array_equal(whole.units, np.concatenate([half.units for half in halves]))
    np.testing.assert_array_equal(whole.samples, np.concatenate([half.samples for half in halves]))
    assert whole.features.shape == (8, 0, 0)


def test_crops_have_the_features_of_their_frames(paths, tmp_path):
    """As with units; each frame has two features."""
    cache = build_cache(paths, tmp_path / "cache", 1000)
    frames = [np.stack([np.arange(count), -np.arange(count)], axis=1) for count in (25, 4, 15)]
    batch = SegmentBatches(cache, 100, 8, seed=1, tokens=FrameTokens(features=frames, frame_samples=20))[0]
    assert (batch.features.shape, batch.features.dtype) == ((8, 5, 2), np.int32)
    for crop, said in zip(batch.samples, batch.features, strict=True):
        clip = int(crop[0] * 10 + 1e-3)
        start = round((crop[0] - clip / 10) * 10_000) // 20
        expected = np.full((5, 2), -1)
        part = frames[clip][start : start + 5]
        expected[: len(part)] = part
        np.testing.assert_array_equal(said, expected)


def test_gains_span_the_asked_range_and_never_clip(tmp_path):
    quiet, loud = tmp_path / "quiet.wav", tmp_path / "loud.wav"
    soundfile.write(quiet, np.full(1000, 0.1), 1000, subtype="FLOAT")
    soundfile.write(loud, np.full(1000, 0.9), 1000, subtype="FLOAT")
    peaks = SegmentBatches(build_cache([quiet], tmp_path / "q", 1000), 10, 400, 0, gain_db=6.0)[0].samples.max(axis=1)
    assert 0.0498 < peaks.min() < 0.053
    assert 0.188 < peaks.max() < 0.2
    peaks = SegmentBatches(build_cache([loud], tmp_path / "l", 1000), 10, 400, 0, gain_db=6.0)[0].samples.max(axis=1)
    assert peaks.max() <= 1.0
    assert peaks.max() > 0.99
