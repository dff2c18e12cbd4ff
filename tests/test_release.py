"""The embedded voice: it opens, is small enough, and says what it said when it was released."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import voxinstruct_jax as vox
from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.judges.bins import classify, group
from voxinstruct_jax.judges.judge import Clip
from voxinstruct_jax.judges.prosody import EnergyJudge, PitchJudge, SpeedJudge
from voxinstruct_jax.text.sample_requests import read_samples
from voxinstruct_jax.utterance import Utterance
from voxinstruct_jax.voice_folder import decode_clip, embedded_release

ROOT = Path(__file__).parents[1]
STEADY = 8
"""First tokens that must agree exactly; later ones may part where another CPU rounds a near tie the other way."""


@pytest.fixture(scope="module")
def voice():
    return vox.load()


def load_script(place="launch/store_release_tokens.py"):
    spec = importlib.util.spec_from_file_location("stored", ROOT / place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_voice_opens_in_bfloat16():
    """The computation and the linear maps; tables, norms and the codec stay in float32."""
    voice = vox.load(dtype="bfloat16")
    for part in (voice.ar, voice.nar):
        assert part.config.dtype == "bfloat16"
        kernels = {str(x.dtype) for path, x in nnx.to_flat_state(part.state) if path[-1] == "kernel"}
        others = {str(x.dtype) for path, x in nnx.to_flat_state(part.state) if path[-1] != "kernel"}
        assert (kernels, others) == ({"bfloat16"}, {"float32"})
    assert {str(x.dtype) for x in jax.tree.leaves(voice.codec.state)} == {"float32"}


def test_what_requests_of_outsiders_ask_for_is_read():
    """Two hundred requests by two writers who had seen nothing of this; no training has met them."""
    requests = read_samples((ROOT / "tests" / "text" / "outside_requests.jsonl.bz2").read_bytes())
    counts = load_script("benchmarks/reading.py").read_all(embedded_release(), tuple(requests), show=False)
    assert [counts[name, "asked"] for name in STYLE_CLASSES] == [137, 84, 97, 107]
    for name, least in {"gender": 0.9, "pitch": 0.88, "energy": 0.85, "speed": 0.84}.items():
        assert counts[name, "right"] >= least * counts[name, "asked"], name


@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_release():
    script = load_script()
    stored = json.loads(script.STORED.read_text("utf-8"))
    for now, then in zip(script.greedy_tokens(), stored, strict=True):
        assert now["language"] == then["language"]
        assert now["semantic"][:STEADY] == then["semantic"][:STEADY]


@pytest.mark.slow
def test_the_same_request_and_seed_give_the_same_tokens(voice):
    first, second = (voice.synthesize('A man says: "Good morning."', seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.semantic, second.semantic)
    np.testing.assert_array_equal(first.acoustic, second.acoustic)
    assert first.finish_reason in ("stop", "max_semantic", "max_acoustic")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "attributes"),
    [
        ("A man with a high voice says slowly and softly", {"pitch": "high", "speed": "slow", "energy": "low"}),
        ("A man with a deep voice says fast and loudly", {"pitch": "low", "speed": "fast", "energy": "high"}),
    ],
)
def test_pitch_speed_and_level_are_what_is_asked_for_one_by_one_and_in_a_batch(voice, asked, attributes):
    instruction = f'{asked}: "The boats came back before the evening."'
    [(_, many)] = voice.synthesize_many([Utterance(instruction=instruction, seed=2)])
    for audio in (voice.synthesize(instruction, seed=2), many):
        clip = Clip(
            samples=audio.samples,
            sample_rate=audio.sample_rate,
            language="en",
            transcript="The boats came back before the evening.",
            syllables=9.0,
        )
        for judge in (PitchJudge(), SpeedJudge(), EnergyJudge()):
            found, name = judge.measure(clip), judge.attribute
            label, _ = classify(voice.prosody.bins, name, group(name, "en", "male"), found.value, found.error)
            assert label == attributes[name], (name, found.value)


@pytest.mark.slow
def test_a_stereo_prompt_of_another_rate_conditions_through_its_codes(voice, tmp_path):
    import soundfile

    samples = read_audio(embedded_release() / "prompt.ogg", 44_100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, samples], axis=1), 44_100)
    audio = voice.synthesize('He says: "Good morning."', prompt=tmp_path / "stereo.wav", seed=3)
    assert audio.samples.size
    assert any("acoustic codes only" in note for note in audio.notes)


def test_resynthesis_by_the_codec_keeps_the_spectrum(voice):
    from voxinstruct_jax.audio.spectrogram import log_mel

    samples = read_audio(embedded_release() / "prompt.ogg", voice.sample_rate)[: 2 * voice.sample_rate]
    again = decode_clip(voice.codec, voice.encode(samples))
    mel = voice.codec.config.mel
    before, after = (np.asarray(log_mel(jnp.asarray(x[None]), mel)) for x in (samples, again))
    distance, silence = np.abs(before - after).mean(), np.abs(before - np.log(1e-5)).mean()
    assert distance < 0.6 < silence
