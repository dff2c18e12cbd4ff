"""What an aligned voice makes of an instruction; the path as such is tested through the commands."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.config import InputError, to_dict
from voxinstruct_jax.decoding.requests import FinishReason
from voxinstruct_jax.decoding.stages import Spoken, frame_units
from voxinstruct_jax.models.style import NUM_CLASSES
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.utterance import Utterance
from voxinstruct_jax.voice import load
from voxinstruct_jax.voice_folder import Loaded, decode_clip


@pytest.fixture(scope="module")
def speak(tiny_aligned_voice):
    """At most 10 frames, so that one program serves all calls."""

    def call(instruction, **more):
        return tiny_aligned_voice.synthesize(instruction, seed=1, max_duration_s=0.4, **more)

    return call


def same_tokens(one, other):
    return np.array_equal(one.semantic, other.semantic) and np.array_equal(one.acoustic, other.acoustic)


def test_an_aligned_voice_speaks_the_whole_instruction_if_nothing_is_quoted(speak):
    found = speak("Well, well")
    assert found.notes == ("no quoted words and no transcript: the whole instruction is spoken",)
    frames = found.acoustic.shape[1]
    assert len(found.semantic) == frames
    assert 1 < frames <= 10
    assert found.finish_reason == "stop"
    assert found.samples.shape == (frames * 960,)
    assert np.isfinite(found.samples).all()
    quoted = speak('"Well, well"')
    assert quoted.notes == ()
    assert same_tokens(found, quoted)
    assert not same_tokens(found, speak('"Well, two"'))


@pytest.mark.parametrize(
    ("instruction", "transcript", "meant"),
    [
        ("Say well softly", "well", 'Say "well" softly'),
        ("In a soft voice", "well", 'In a soft voice "well"'),
        ('Say "well" softly', "two", 'Say "well" softly'),
    ],
)
def test_an_aligned_voice_puts_the_transcript_in_quotes(speak, instruction, transcript, meant):
    assert spoken_content(meant).text == "well"
    found = speak(instruction, transcript=transcript)
    assert same_tokens(found, speak(meant))
    assert found.notes == ()


def test_an_aligned_voice_continues_the_sound_of_a_prompt_whatever_it_says(speak, tmp_path):
    prompt = tmp_path / "prompt.wav"
    soundfile.write(prompt, 0.1 * np.random.default_rng(0).standard_normal(30_000), 24_000)
    found = speak('Say "well"', prompt=prompt, prompt_transcript="anything")
    assert found.notes == ("the prompt conditions through acoustic codes only",)
    assert len(found.semantic) == found.acoustic.shape[1] <= 10
    assert found.samples.shape == (found.acoustic.shape[1] * 960,)
    assert same_tokens(found, speak('Say "well"', prompt=prompt))
    assert not same_tokens(found, speak('Say "well"'))


def test_many_utterances_are_spoken_as_one_by_one_and_a_bad_one_is_told(speak, tiny_aligned_voice):
    asked = [Utterance(instruction=text, seed=1, max_duration_s=0.4) for text in ('"Well"', "...", '"Two"')]
    found = dict(tiny_aligned_voice.synthesize_many(iter(asked)))
    assert sorted(found) == [0, 1, 2]
    assert isinstance(found[1], InputError)
    assert same_tokens(found[0], speak('"Well"'))
    assert same_tokens(found[2], speak('"Two"'))


@pytest.fixture(scope="module")
def voice_of_units(tiny_aligned_voice):
    """A voice whose codec's decoder reads semantic units, loudly."""
    config = dataclasses.replace(
        tiny_aligned_voice.codec.config,
        num_units=tiny_aligned_voice.ar.config.vocabulary.num_semantic,
        reads_units=True,
    )
    model = MelCodec(config, rngs=nnx.Rngs(0))
    shape = model.from_unit.embedding[...].shape
    model.from_unit.embedding[...] = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    return dataclasses.replace(tiny_aligned_voice, codec=Loaded(*nnx.split(model), config))


def test_a_decoder_that_reads_units_is_given_those_of_the_frames(voice_of_units):
    audio = voice_of_units.synthesize('A man says "Hello there"', seed=3)
    units = np.full(audio.acoustic.shape[1], -1, np.int32)
    units[: len(audio.semantic)] = audio.semantic[: len(units)]
    np.testing.assert_array_equal(audio.samples, decode_clip(voice_of_units.codec, audio.acoustic, units))
    assert not np.allclose(audio.samples, decode_clip(voice_of_units.codec, audio.acoustic), atol=1e-3)


def test_units_are_read_in_a_batch_as_they_are_alone(voice_of_units):
    utterances = [Utterance(instruction=f'"{"hello " * count}"', seed=count) for count in (1, 3, 2)]
    together = dict(voice_of_units.synthesize_many(utterances))
    for place, utterance in enumerate(utterances):
        alone = voice_of_units.synthesize(utterance.instruction, seed=utterance.seed)
        np.testing.assert_array_equal(together[place].acoustic, alone.acoustic)
        np.testing.assert_allclose(together[place].samples, alone.samples, atol=1e-5)


@pytest.mark.parametrize(("timing", "known"), [("aligned", [-1, -1, 4, 5, -1]), ("sequence", [-1] * 5)])
def test_units_of_frames_stand_behind_the_prompt_and_are_known_to_aligned_models_alone(tiny_voice, timing, known):
    config = dataclasses.replace(tiny_voice.ar.config, timing=timing)
    stage = dataclasses.replace(tiny_voice, ar=dataclasses.replace(tiny_voice.ar, config=config))
    spoken = Spoken(
        language="en",
        semantic=np.array([4, 5], np.int32),
        first_codes=np.zeros(3, np.int32),
        reason=FinishReason.STOP,
        durations=np.zeros(1, np.float32),
        classes=np.zeros(NUM_CLASSES, np.float32),
    )
    np.testing.assert_array_equal(frame_units(stage._models(), spoken, 5), known)


def test_a_codec_that_reads_other_units_is_refused(tiny_voice_folder, tmp_path):
    folder = shutil.copytree(tiny_voice_folder, tmp_path / "voice")
    settings = json.loads((folder / "codec/config.json").read_text())
    config = dataclasses.replace(CodecConfig.tiny(), num_units=3, reads_units=True)
    arrays = nnx.to_pure_dict(nnx.state(MelCodec(config, rngs=nnx.Rngs(0))))
    save_weights(folder / "codec", arrays, {"kind": settings["kind"], "model": to_dict(config)}, card="# Random\n")
    with pytest.raises(InputError, match="the codec reads 3 semantic units, the AR model says"):
        load(folder)
