"""What an aligned voice makes of an instruction; the path as such is tested through the commands."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax import voice
from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.config import ConfigError, InputError, to_dict
from voxinstruct_jax.decoding.requests import ARRequest, FinishReason, Limits
from voxinstruct_jax.decoding.stages import SpeechRequest, Spoken, frame_features
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.models.style import NUM_CLASSES
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.tokenizer import PHONE_CHANNELS
from voxinstruct_jax.utterance import Utterance
from voxinstruct_jax.vocabulary import build_prompt
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
def voice_of_features(tiny_aligned_voice):
    """A voice whose codec's decoder reads semantic units and phones, loudly."""
    ar = tiny_aligned_voice.ar.config
    phones = ar.text_encoder.channel_sizes[PHONE_CHANNELS]
    sizes = (ar.vocabulary.num_semantic, *phones, *phones)
    config = dataclasses.replace(tiny_aligned_voice.codec.config, feature_sizes=sizes)
    model = MelCodec(config, rngs=nnx.Rngs(0))
    kernel = model.features.output.kernel
    kernel[...] = jnp.asarray(np.random.default_rng(0).standard_normal(kernel.shape), jnp.float32)
    return dataclasses.replace(tiny_aligned_voice, codec=Loaded(*nnx.split(model), config))


def test_a_decoder_that_reads_features_is_given_those_of_the_frames(voice_of_features, monkeypatch):
    given = []
    decode = voice.decode_clip
    monkeypatch.setattr(voice, "decode_clip", lambda *of_clip: given.append(of_clip[2]) or decode(*of_clip))
    audio = voice_of_features.synthesize('A man says "Hello there"', seed=3)
    (features,) = given
    units = np.full(audio.acoustic.shape[1], -1, np.int32)
    units[: len(audio.semantic)] = audio.semantic[: len(units)]
    np.testing.assert_array_equal(features[:, 0], units)
    assert len(np.unique(features[:, 1:])) > 2
    np.testing.assert_array_equal(audio.samples, decode_clip(voice_of_features.codec, audio.acoustic, features))
    assert not np.allclose(audio.samples, decode_clip(voice_of_features.codec, audio.acoustic), atol=1e-3)


def test_features_are_read_in_a_batch_as_they_are_alone(voice_of_features):
    utterances = [Utterance(instruction=f'"{"hello " * count}"', seed=count) for count in (1, 3, 2)]
    together = dict(voice_of_features.synthesize_many(utterances))
    for place, utterance in enumerate(utterances):
        alone = voice_of_features.synthesize(utterance.instruction, seed=utterance.seed)
        np.testing.assert_array_equal(together[place].acoustic, alone.acoustic)
        np.testing.assert_allclose(together[place].samples, alone.samples, atol=1e-5)


@pytest.mark.parametrize("timing", ["aligned", "sequence"])
def test_features_of_frames_stand_behind_the_prompt_and_are_known_to_aligned_models_alone(tiny_voice, timing):
    """Two semantic tokens and one character of three half frames, in the last three of five frames."""
    config = dataclasses.replace(tiny_voice.ar.config, timing=timing)
    stage = dataclasses.replace(tiny_voice, ar=dataclasses.replace(tiny_voice.ar, config=config))
    spoken = Spoken(
        language="en",
        semantic=np.array([4, 5], np.int32),
        first_codes=np.zeros(3, np.int32),
        reason=FinishReason.STOP,
        durations=np.array([0, 3], np.float32),
        classes=np.zeros(NUM_CLASSES, np.float32),
    )
    rows = np.array([[9, 1, 1, 0, 3], [8, 6, 7, 0, 2]], np.int32)
    nothing = np.zeros((4, 0), np.int32)
    asked = ARRequest(
        text_tokens=rows,
        prompt=build_prompt(config.vocabulary, "en", nothing[0], nothing),
        guidance=Guidance(),
        limits=Limits(min_semantic=0, max_semantic=3, min_acoustic=0, max_acoustic=3, max_total=9),
        seed=0,
    )
    request = SpeechRequest(ar=asked, prompt_units=nothing[0], prompt_codes=nothing)
    known = np.full((5, 5), -1)
    if timing == "aligned":
        known[2:] = [[4, 6, 7, 6, 7], [5, 6, 7, -1, -1], [-1] * 5]
    np.testing.assert_array_equal(frame_features(stage._models(), request, spoken, 5), known)


def test_a_codec_that_reads_other_units_is_refused(tiny_voice_folder, tmp_path):
    folder = shutil.copytree(tiny_voice_folder, tmp_path / "voice")
    settings = json.loads((folder / "codec/config.json").read_text())
    config = dataclasses.replace(CodecConfig.tiny(), feature_sizes=(3, 1, 1, 1, 1))
    arrays = nnx.to_pure_dict(nnx.state(MelCodec(config, rngs=nnx.Rngs(0))))
    save_weights(folder / "codec", arrays, {"kind": settings["kind"], "model": to_dict(config)}, card="# Random\n")
    with pytest.raises(
        InputError, match=r"the codec reads \[3, 1, 1\] semantic units, first and second phones, the AR model has"
    ):
        load(folder)


def settings_changed(folder, **changes):
    path = folder / "voice.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_voice_with_other_settings_has_another_name(tiny_voice_folder, tmp_path):
    folder = shutil.copytree(tiny_voice_folder, tmp_path / "voice")
    before = load(folder).name
    settings_changed(folder, stress={"gain_db": 3.0})
    assert load(folder).name != before


def test_stress_that_cannot_be_is_refused_in_one_line(tiny_voice_folder, tmp_path):
    folder = shutil.copytree(tiny_voice_folder, tmp_path / "voice")
    settings_changed(folder, stress={"gain_db": -1.0})
    with pytest.raises(ConfigError, match=r"^stress: semitones 0\.0 and gain_db -1\.0 must be at least 0"):
        load(folder)
