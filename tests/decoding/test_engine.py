"""The engine on tiny voices: bits that hang on the request alone, errors apart, memory that is planned."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.decoding import memory
from voxinstruct_jax.decoding.profile import EngineProfile, Lane
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.layers.attention import PAST_BLOCK
from voxinstruct_jax.utterance import Utterance

NONE = Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)
PROFILE = EngineProfile(
    lanes=(Lane(context=2 * PAST_BLOCK, slots=3, rows=7),),
    nar_widths=(64,),
    chunk_steps=8,
    nar_batch=2,
    vocoder_batch=2,
    look_ahead=4,
)
WORDS = ("well", "two", "see", "me", "moo", "tea")


@pytest.fixture(scope="module")
def utterances():
    """Six, of one and three branches in turn, at most 10 frames each."""
    return [
        Utterance(instruction=f'Say "{word}"', seed=seed, max_duration_s=0.4, guidance=NONE if seed % 2 else None)
        for seed, word in enumerate(WORDS)
    ]


@pytest.fixture(scope="module")
def spoken(tiny_aligned_voice, utterances):
    return dict(tiny_aligned_voice.synthesize_many(utterances, profile=PROFILE))


def bits_of(audio):
    return audio.semantic.tobytes(), audio.acoustic.tobytes(), audio.samples.tobytes(), audio.finish_reason


def test_order_and_neighbours_change_no_bit(tiny_aligned_voice, utterances, spoken):
    assert sorted(spoken) == list(range(6))
    assert len({bits_of(audio)[1] for audio in spoken.values()}) == 6
    order = [4, 1, 5, 0, 3, 2, 4]
    turned = dict(tiny_aligned_voice.synthesize_many([utterances[place] for place in order], profile=PROFILE))
    for place, original in enumerate(order):
        assert bits_of(turned[place]) == bits_of(spoken[original])
    ((place, alone),) = tiny_aligned_voice.synthesize_many([utterances[2]], profile=PROFILE)
    assert place == 0
    assert bits_of(alone) == bits_of(spoken[2])


def test_look_ahead_and_chunks_under_way_change_no_bit_and_are_no_part_of_the_fingerprint(
    tiny_aligned_voice, utterances, spoken
):
    other = dataclasses.replace(PROFILE, look_ahead=1, chunks_ahead=1)
    assert other.fingerprint == PROFILE.fingerprint
    assert dataclasses.replace(PROFILE, nar_batch=1).fingerprint != PROFILE.fingerprint
    found = dict(tiny_aligned_voice.synthesize_many(utterances, profile=other))
    assert {place: bits_of(audio) for place, audio in found.items()} == {
        place: bits_of(audio) for place, audio in spoken.items()
    }


def test_the_engine_agrees_with_one_call_a_request(tiny_aligned_voice, utterances, spoken):
    item = utterances[0]
    alone = tiny_aligned_voice.synthesize(item.instruction, seed=item.seed, max_duration_s=0.4)
    np.testing.assert_array_equal(alone.acoustic, spoken[0].acoustic)
    np.testing.assert_allclose(alone.samples, spoken[0].samples, atol=1e-4)
    assert alone.notes == spoken[0].notes


def test_bad_utterances_are_told_apart_and_the_rest_is_spoken(tiny_aligned_voice, utterances, spoken):
    bad = Utterance(instruction="...")
    long = Utterance(instruction='Say "well"', max_duration_s=4.0, transcript="well " * 20)
    asked = [bad, utterances[0], bad, long, utterances[1]]
    found = dict(tiny_aligned_voice.synthesize_many(asked, profile=PROFILE))
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert all(isinstance(found[place], InputError) for place in (0, 2, 3))
    assert "cache slots" in str(found[3])
    assert bits_of(found[1]) == bits_of(spoken[0])
    assert bits_of(found[4]) == bits_of(spoken[1])


def test_utterances_are_read_only_a_bounded_number_ahead(tiny_aligned_voice, utterances):
    pulled = itertools.count()
    last = 0

    def endless():
        nonlocal last
        for last in pulled:
            yield utterances[last % 2]

    stream = tiny_aligned_voice.synthesize_many(endless(), profile=PROFILE)
    for count in range(1, 6):
        next(stream)
        under_way = PROFILE.lanes[0].slots + PROFILE.look_ahead + PROFILE.nar_batch + PROFILE.vocoder_batch
        assert last <= count + under_way + PROFILE.lanes[0].slots
    stream.close()


def test_slots_fill_the_memory_that_is_given_and_no_more(tiny_voice, monkeypatch):
    monkeypatch.setattr(memory, "MOST_SLOTS", 10**5)
    models, given = tiny_voice._models(), 2**33
    profile = tiny_voice.fit_profile(given)
    plan = memory.plan_memory(models, profile)
    assert 0.8 * given < plan.total <= given
    lane = profile.lanes[-1]
    cache_row = 2 * 2 * 2 * 8 * lane.context * 4  # keys and values, layers, heads, their size, slots, bytes
    assert lane.rows * cache_row < plan.state < 1.3 * lane.rows * cache_row
    assert min(plan.weights, plan.prefill, plan.steps, plan.nar, plan.vocoder) > 0
    assert profile.lanes[0].slots > lane.slots > 1
    with pytest.raises(ConfigError, match="MiB for one request at a time, 1 MiB are there"):
        tiny_voice.fit_profile(2**20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_steps": 0}, "profile.chunk_steps: 0 must be at least 1"),
        ({"lanes": ()}, "profile.lanes"),
        ({"nar_widths": (64, 32)}, "profile.nar_widths"),
        ({"replicas": -1}, "profile.replicas: -1 must be at least 0"),
    ],
)
def test_profiles_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PROFILE, **settings)


def test_more_devices_than_there_are_are_refused(tiny_aligned_voice, utterances):
    profile = dataclasses.replace(PROFILE, replicas=3)
    with pytest.raises(ConfigError, match="3 replicas of 1 devices each, but there are 1 here"):
        list(tiny_aligned_voice.synthesize_many(utterances, profile=profile))


ON_TWO_DEVICES = """
import dataclasses, json, sys, zlib
import jax
from voxinstruct_jax.config import from_dict
from voxinstruct_jax.decoding.profile import EngineProfile
from voxinstruct_jax.utterance import Utterance
from voxinstruct_jax.voice import load

folder, profile, words = sys.argv[1], from_dict(EngineProfile, json.loads(sys.argv[2])), json.loads(sys.argv[3])
assert jax.local_device_count() == 2
voice = load(folder)
asked = {
    seed: Utterance(instruction=f'Say "{word}"', seed=seed, max_duration_s=0.4)
    for seed, word in enumerate(words) if seed % 2 == 0
}
found = {}
for name, settings in {"replicas": {}, "shared": {"tensor": 2}}.items():
    spoken = dict(voice.synthesize_many(asked.values(), profile=dataclasses.replace(profile, **settings)))
    audios = [spoken[place] for place in range(len(asked))]
    found[name] = [[audio.acoustic.tolist(), zlib.crc32(audio.samples.tobytes())] for audio in audios]
print(json.dumps(found))
"""


def test_bits_are_the_same_on_two_replicas_of_another_process_and_tokens_agree_where_devices_share_a_model(
    tiny_aligned_voice, spoken
):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    profile = json.dumps(dataclasses.asdict(PROFILE))
    command = [sys.executable, "-c", ON_TWO_DEVICES, tiny_aligned_voice.folder, profile, json.dumps(WORDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "XLA_FLAGS": flags})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    here = [[spoken[place].acoustic.tolist(), zlib.crc32(spoken[place].samples.tobytes())] for place in (0, 2, 4)]
    assert found["replicas"] == here
    assert sum(ours[0] == theirs[0] for ours, theirs in zip(here, found["shared"], strict=True)) >= 2
