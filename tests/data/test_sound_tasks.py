"""UNISON's table: every task makes what it says, from the draws alone."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.sound_batches import SoundBatches, SoundData, open_pool
from voxinstruct_jax.data.sound_tasks import TASKS, Speech, mix, probabilities, synthesize
from voxinstruct_jax.data.sounds import SOUNDS, make_sound
from voxinstruct_jax.text.phones import NUM_PHONES, phone_ids, turns_of
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

RATE = 8000
ROOM = 4 * RATE


class Pool:
    """Speech is a low tone, one frequency a word; sounds are those made on the spot."""

    sample_rate = RATE

    def speech(self, random, num_samples):
        return self.said("hello", random, num_samples)

    def speaker_pair(self, random, num_samples):
        return self.said("one", random, num_samples), self.said("two", random, num_samples)

    def said(self, word, random, num_samples):
        count = int(random.integers(num_samples // 3, num_samples // 2))
        wave = 0.02 * np.sin(2 * np.pi * 150 * np.arange(count) / RATE)
        return Speech(samples=wave.astype(np.float32), transcript=word, gender="male", instruction=f'Say "{word}".')

    def sound(self, random, num_samples):
        return make_sound(random, num_samples, RATE)


def made(name, seed=0):
    return synthesize(name, Pool(), np.random.default_rng(seed), ROOM)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_gives_an_example_that_follows_from_its_draws(name):
    for seed in range(3):
        example, again = made(name, seed), made(name, seed)
        np.testing.assert_array_equal(example.target, again.target)
        np.testing.assert_array_equal(example.source, again.source)
        assert (example.text, example.tag) == (again.text, TASKS[name].tag)
        assert example.target.shape == example.source.shape == (ROOM,)
        assert 0 < np.abs(example.target).max() <= 0.991
        assert np.abs(example.source).max() <= 0.991
        assert not example.target[example.num_samples :].any()
        assert example.source.any() == (example.tag != 0)
        assert bool(example.prefix_samples) == (example.tag == 2)
    assert not np.array_equal(made(name, 0).target, made(name, 1).target)


@pytest.mark.parametrize("name", ["edit_add", "edit_remove", "edit_speech_insert", "speech_delete", "denoise"])
def test_an_edit_changes_the_event_alone(name):
    """Where nothing was added or taken away, source and target are the very same samples."""
    for seed in range(4):
        example = made(name, seed)
        (places,) = np.nonzero(example.source != example.target)
        assert len(places) > RATE // 4
        if name != "denoise":  # noise lies under the whole of the speech
            assert places[-1] - places[0] < ROOM // 2


def test_added_and_removed_are_mirror_images():
    add, remove = made("edit_add", 5), made("edit_remove", 5)
    np.testing.assert_allclose(add.source, remove.target, atol=1e-6)
    np.testing.assert_allclose(add.target, remove.source, atol=1e-6)


class TwoTones(Pool):
    """Speech below 200 Hz and sounds above 300 Hz, so that a mix can be taken apart."""

    def speech(self, random, num_samples):
        return dataclasses.replace(super().speech(random, num_samples), samples=tone(random, 80, 200, num_samples // 2))

    def sound(self, random, num_samples):
        return dataclasses.replace(make_sound(random, num_samples, RATE), samples=tone(random, 300, 3000, num_samples))


def tone(random, lowest, highest, num_samples):
    return np.sin(2 * np.pi * random.uniform(lowest, highest) * np.arange(num_samples) / RATE).astype(np.float32)


@pytest.mark.parametrize(("name", "kept"), [("edit_arsp", "speech"), ("edit_srap", "sound")])
def test_of_speech_over_a_sound_one_is_replaced_and_the_other_kept(name, kept):
    for seed in range(4):
        example = synthesize(name, TwoTones(), np.random.default_rng(seed), ROOM)
        spectra = [np.abs(np.fft.rfft(samples)) for samples in (example.source, example.target)]
        low = np.fft.rfftfreq(ROOM, 1 / RATE) < 220
        apart = [np.abs(spectra[0] - spectra[1])[band].max() / spectra[0][band].max() for band in (low, ~low)]
        same, other = apart if kept == "speech" else apart[::-1]
        assert same < 0.1 < 0.3 < other
        assert example.text.startswith("[Edit] [Audio] Remove" if kept == "speech" else "[Edit] [Speech] Remove the")


def test_a_reference_is_the_beginning_of_what_is_said():
    example = made("zeroshotts")
    given = example.prefix_samples
    np.testing.assert_array_equal(example.source[:given], example.target[:given])
    assert not example.source[given:].any()
    assert example.text == "[Speech with voice] one, two"


def test_a_timeline_says_when_things_sound():
    example = made("t2a_timeline", 1)
    words = example.text.removeprefix("[Audio] ").split(". From ")
    assert words[0].startswith("From 0.0s to ")
    assert all(part.split(", ")[1].rstrip(".") in SOUNDS for part in words)
    end = round(float(words[0].split("s to ")[1].split("s, ")[0]) * RATE)
    start = round(float(words[1].split("s to ")[0].removesuffix("s")) * RATE) if len(words) > 1 else ROOM
    assert not example.target[end:start].any()  # silence between, or an overlap


def test_overlaps_of_a_timeline_last_one_to_two_seconds():
    """In clips of ten seconds: three in ten timelines, the others with pauses of half a second."""
    apart = []
    for seed in range(60):
        text = synthesize("t2a_timeline", Pool(), np.random.default_rng(seed), 10 * RATE).text
        times = [(float(a), float(b)) for a, b in re.findall(r"From ([\d.]+)s to ([\d.]+)s", text)]
        assert len(times) in (2, 3)
        assert times[-1][1] == pytest.approx(10, abs=0.11)
        apart.extend(later[0] - earlier[1] for earlier, later in itertools.pairwise(times))
        assert all(later[0] > earlier[0] + 1.4 for earlier, later in itertools.pairwise(times))
    overlaps = -np.array([each for each in apart if each < 0])
    assert 0.15 < len(overlaps) / len(apart) < 0.45
    assert overlaps.min() > 0.85
    assert overlaps.max() > 1.5
    np.testing.assert_allclose([each for each in apart if each >= 0], 0.5, atol=0.11)


class ShortSounds(Pool):
    """Sounds of a corpus may be shorter than what is said."""

    def sound(self, random, num_samples):
        return make_sound(random, RATE // 2, RATE)


@pytest.mark.parametrize("name", ["speech_audio_mix", "edit_speech_insert", "edit_speech_content"])
def test_words_are_heard_to_their_end_over_a_shorter_sound(name):
    for seed in range(3):
        example = synthesize(name, ShortSounds(), np.random.default_rng(seed), ROOM)
        assert np.count_nonzero(example.target) > 0.95 * (ROOM // 3)  # a third is the shortest speech


def test_a_timeline_says_when_a_short_sound_ends():
    text = synthesize("t2a_timeline", ShortSounds(), np.random.default_rng(0), ROOM).text
    assert "From 0.0s to 0.5s, " in text


@pytest.mark.parametrize("name", ["edit_remove_add", "t2a_mix", "edit_add"])
def test_sounds_of_any_length_are_mixed(name):
    class AnyLength(Pool):
        def sound(self, random, num_samples):
            return make_sound(random, int(random.integers(RATE // 10, num_samples)), RATE)

    for seed in range(8):
        example = synthesize(name, AnyLength(), np.random.default_rng(seed), ROOM)
        assert example.target[: example.num_samples].any()
        assert not example.target[example.num_samples :].any()


@pytest.mark.parametrize("ratio", [-10.0, 0.0, 15.0])
def test_mixes_have_the_drawn_level(ratio):
    random = np.random.default_rng(0)
    base, event = random.standard_normal(RATE), 7 * random.standard_normal(RATE // 2)
    levelled, placed = mix(base, event, ratio, random, RATE)
    (inside,) = np.nonzero(placed)
    inner = placed[inside[0] + 400 : inside[-1] - 400]  # without the fades
    found = 20 * np.log10(levelled.std() / inner.std())
    assert found == pytest.approx(ratio, abs=0.2)
    assert levelled.std() == pytest.approx(0.1, rel=0.01)


def test_shares_sum_to_one_and_the_first_stage_only_generates():
    names = tuple(name for name in TASKS if name != "instruct_tts")
    whole, first = (probabilities(names, generation_only=flag) for flag in (False, True))
    assert sum(whole.values()) == pytest.approx(1)
    assert sum(first.values()) == pytest.approx(1)
    assert sum(TASKS[name].share for name in names) == pytest.approx(1)  # as the release gives them
    assert sum(TASKS[name].share for name in first) == pytest.approx(0.70)
    assert first["zeroshotts"] == pytest.approx(0.357, abs=5e-4)
    assert first["tts"] == pytest.approx(0.214, abs=5e-4)
    assert not any(name.startswith("edit") or name in ("denoise", "speech_delete") for name in first)
    with pytest.raises(ConfigError, match="'edit_ad' is none of tts"):
        probabilities(("edit_ad",), generation_only=False)
    assert probabilities(("edit_add",), generation_only=True) == {"edit_add": 1.0}  # there is no first stage
    with pytest.raises(ConfigError, match="tasks: none is given"):
        SoundData(tasks=())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("clips"), []
    for number in range(6):
        seconds = np.arange(int(RATE * (0.5 + 0.1 * number))) / RATE
        soundfile.write(folder / f"{number}.wav", 0.1 * np.sin(2 * np.pi * 200 * (number + 1) * seconds), RATE)
        rows.append({"id": str(number), "audio": f"{number}.wav", "language": "en", "transcript": f"word {number}",
                     "speaker": f"s{number // 2}"})  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SoundData(
        manifest=str(folder / "manifest.jsonl"), tasks=tuple(TASKS), first_stage_steps=8, clip_s=2.0, rows=6,
        task_rows=3, text_width=160, phone_width=60,
    )  # fmt: skip


def batches(data, **options):
    return SoundBatches(open_pool(data, RATE)[0], data, PronunciationTokenizer(), 0, **options)


def test_batches_follow_from_the_step_on_any_number_of_hosts(data):
    whole, first, second = batches(data), batches(data, host_rows=(0, 2)), batches(data, host_rows=(2, 6))
    for step in (0, 9):
        batch, parts = whole[step], (first[step], second[step])
        for field in dataclasses.fields(batch):
            if field.name == "text_states":
                continue
            joined = np.concatenate([getattr(part, field.name) for part in parts])
            np.testing.assert_array_equal(getattr(batch, field.name), joined)


def test_neighbouring_rows_share_a_task_and_stages_follow_one_another(data):
    found = batches(data)
    for step in range(30):
        tasks = [found.task(step, row) for row in range(6)]
        assert len(set(tasks[:3])) == len(set(tasks[3:])) == 1
        assert step >= 8 or all(TASKS[name].generates for name in tasks)
    later = {found.task(step, row) for step in range(8, 200) for row in (0, 3)}
    assert later == set(TASKS)


def test_lengths_count_only_where_silence_is_not_learnt(data):
    learnt, counted = (
        batches(dataclasses.replace(data, tasks=("tts",), pad_is_silence=flag))[0] for flag in (True, False)
    )
    assert (np.asarray(learnt.num_samples) == 2 * RATE).all()
    assert (np.asarray(counted.num_samples) < 2 * RATE).all()
    np.testing.assert_array_equal(learnt.target, counted.target)


def test_data_that_does_not_fit_is_refused(data):
    short = dataclasses.replace(data, tasks=("tts",), clip_s=0.1)
    with pytest.raises(InputError, match=r"no clip is as short as 0\.10 s"):
        batches(short)[0]
    with pytest.raises(InputError, match="longer than 8 tokens"):
        batches(dataclasses.replace(data, tasks=("tts",), text_width=8))[0]
    with pytest.raises(ConfigError, match="does not divide rows 6"):
        dataclasses.replace(data, task_rows=4)


def test_a_dialogue_marks_whose_turn_it_is():
    tokenizer = PronunciationTokenizer()
    hello, reply = phone_ids([(0, "hello")], tokenizer), phone_ids([(1, "你好")], tokenizer)
    both = phone_ids([(0, "hello"), (1, "你好")], tokenizer)
    np.testing.assert_array_equal(both, np.concatenate([hello, reply]))
    assert (hello[0], reply[0]) == (1, 2)
    np.testing.assert_array_equal(phone_ids(turns_of("[S0] hello [S1] 你好"), tokenizer), both)
    assert turns_of("hello") == [(0, "hello")]
    assert turns_of("so, [S1] hello [S0]you") == [(0, "so,"), (1, "hello"), (0, "you")]
    assert both.max() < NUM_PHONES
    assert (both[1:] > 0).all()
    assert set(hello[1:].tolist()) & set(reply[1:].tolist()) <= {3}  # silence alone is common to two languages
    with pytest.raises(InputError, match="speakers 0 to 1"):
        phone_ids([(2, "hello")], tokenizer)
