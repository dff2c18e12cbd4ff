"""What an aligned voice makes of an instruction; the path as such is tested through the commands."""

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.config import InputError
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.utterance import Utterance


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
