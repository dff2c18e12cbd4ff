"""Voices whose sound a flow makes of what an AR model says: by the same calls as the codec language model's."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile
from flax import nnx

import voxinstruct_jax as vox
from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError
from voxinstruct_jax.decoding.profile import EngineProfile, Lane
from voxinstruct_jax.diffusion.codec_speech import speak_units
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.flow_voice import KIND, FlowVoiceConfig, check_flow
from voxinstruct_jax.jobs.units import Speaker
from voxinstruct_jax.layers.attention import PAST_BLOCK
from voxinstruct_jax.models.codec_flow import CodecFlow, CodecFlowConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.utterance import Utterance
from voxinstruct_jax.voice import load as load_codec_voice
from voxinstruct_jax.voice_folder import write_voice_settings
from voxinstruct_jax.voices import AnyVoice

PROFILE = EngineProfile(
    lanes=(Lane(context=2 * PAST_BLOCK, slots=3, rows=9),), nar_widths=(64,), chunk_steps=8, look_ahead=4
)
WORDS = ("well", "two", "see", "me", "moo")
UTTERANCES = [Utterance(instruction=f'Say "{word}"', seed=seed, max_duration_s=0.4) for seed, word in enumerate(WORDS)]
HOP = CodecConfig.tiny().hop_length


def flow_config(system, num_units):
    codec = CodecConfig.tiny()
    network = MMDiTConfig.told_frame_by_frame(codec.quantizer.latent_dim, PronunciationTokenizer().channel_sizes)
    encoder = dataclasses.replace(network.text_encoder, num_layers=1, ffn_dim=64)
    network = dataclasses.replace(network, model_dim=32, rotary_dims=8, single_blocks=1, text_encoder=encoder)
    return CodecFlowConfig(network=network, codec=codec, num_units=num_units, first_codebook=system == "bridge")


@pytest.fixture(scope="module")
def make_folder(random_part, tiny_aligned_voice, tmp_path_factory):
    """Writes the voice of a flow of random weights behind the AR model of `tiny_aligned_voice`."""

    def write(system):
        folder = tmp_path_factory.mktemp("voices") / system
        num_units = tiny_aligned_voice.ar.config.vocabulary.num_semantic
        random_part(folder / "flow", "codec_flow", flow_config(system, num_units), CodecFlow)
        shutil.copytree(tiny_aligned_voice.folder / "ar", folder / "ar")
        diffusion = SYSTEMS[system]
        grid = dataclasses.replace(diffusion.sampler.grid, steps=2)
        diffusion = dataclasses.replace(diffusion, sampler=dataclasses.replace(diffusion.sampler, grid=grid))
        config = FlowVoiceConfig(language_model=tiny_aligned_voice.config, diffusion=diffusion, batch_size=2)
        write_voice_settings(folder, KIND, config)
        return folder

    return write


@pytest.fixture(scope="module")
def decoder_folder(make_folder):
    return make_folder("flow_decoder")


@pytest.fixture(scope="module")
def decoder_voice(decoder_folder):
    return vox.load(decoder_folder)


def bits_of(audio):
    return audio.semantic.tobytes(), audio.acoustic.tobytes(), audio.samples.tobytes(), audio.finish_reason


def test_a_flow_decoder_speaks_the_units_of_the_ar_model_which_stops_behind_them(decoder_voice, tiny_aligned_voice):
    assert isinstance(decoder_voice, AnyVoice)
    assert isinstance(decoder_voice, Speaker)
    asked = {"seed": 1, "max_duration_s": 0.4}
    found = decoder_voice.synthesize('Say "two"', **asked)
    ours = tiny_aligned_voice.synthesize('Say "two"', **asked)
    np.testing.assert_array_equal(found.semantic, ours.semantic)
    assert (found.language, found.finish_reason, found.notes) == (ours.language, "stop", ours.notes)
    assert found.acoustic.size == 0
    assert found.samples.shape == (len(found.semantic) * HOP,) == ours.samples.shape
    assert np.isfinite(found.samples).all()
    assert found.model.startswith("flow_decoder ")
    model = nnx.merge(decoder_voice.flow.graph, decoder_voice.flow.state)
    text = PronunciationTokenizer().encode('Say "two"')
    lengths = np.ones(len(found.semantic), int)
    again = speak_units(model, decoder_voice.diffusion, found.semantic, lengths, text, seed=1)
    np.testing.assert_allclose(found.samples, again, atol=1e-4 * np.abs(again).max())


def test_a_bridge_begins_at_the_codes_that_the_ar_model_says(make_folder, tiny_aligned_voice):
    voice = vox.load(make_folder("bridge"))
    asked = {"seed": 1, "max_duration_s": 0.4}
    found = voice.synthesize('Say "two"', **asked)
    ours = tiny_aligned_voice.synthesize('Say "two"', **asked)
    np.testing.assert_array_equal(found.semantic, ours.semantic)
    np.testing.assert_array_equal(found.acoustic, ours.acoustic[:1])
    assert found.samples.shape == ours.samples.shape
    assert voice.cost(4.0).evaluations == 200 + 2
    cut = dataclasses.replace(voice, config=dataclasses.replace(voice.config, max_tokens=4))
    with pytest.raises(InputError, match=r"said no frame \(max_total\)"):
        cut.synthesize('Say "two"', **asked)


def test_order_and_neighbours_change_no_bit(decoder_voice):
    def spoken(utterances):
        found = dict(decoder_voice.synthesize_many(utterances, profile=PROFILE))
        assert sorted(found) == list(range(len(utterances)))
        return [bits_of(found[place]) for place in range(len(utterances))]

    together, alone = spoken(UTTERANCES), spoken(UTTERANCES[2:3])
    assert together == spoken(UTTERANCES[::-1])[::-1]
    assert together[2] == alone[0]
    assert len({samples for _, _, samples, _ in together}) == len(UTTERANCES)


def test_what_cannot_be_spoken_fails_alone_and_a_prompt_is_noted(decoder_voice, tmp_path):
    prompted = dataclasses.replace(UTTERANCES[0], prompt=tmp_path / "none.wav", prompt_transcript="well")
    asked = [Utterance(instruction="..."), prompted, Utterance(instruction='Say "go"', seed=-1)]
    found = dict(decoder_voice.synthesize_many(asked, profile=PROFILE))
    assert "holds no words" in str(found[0])
    assert found[1].notes == ("this voice takes no voice prompt; it is left out",)
    assert "seed -1" in str(found[2])


def test_a_job_speaks_with_it(decoder_folder, decoder_voice, tmp_path, capsys):
    rows = [{"id": word, "instruction": f'Say "{word}"', "seed": 1, "max_duration_s": 0.4} for word in ("yes", "no")]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "synthesize",
        "--voice",
        str(decoder_folder),
        "--requests",
        str(requests),
        "--out",
        str(tmp_path / "out"),
    ]
    main([*command, "--attempts", "1", "--json"])
    found = {row["id"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    asked = [Utterance(instruction=row["instruction"], seed=1, max_duration_s=0.4) for row in rows]
    for place, audio in decoder_voice.synthesize_many(asked):
        heard, _ = soundfile.read(tmp_path / "out" / found[rows[place]["id"]]["audio"], dtype="float32")
        np.testing.assert_allclose(heard, np.clip(audio.samples, -1, 1), atol=1e-4)


def test_the_cost_has_the_ar_model_and_the_flow(decoder_voice):
    long, short = decoder_voice.cost(8.0), decoder_voice.cost(4.0)
    assert (short.evaluations, long.evaluations, short.seconds) == (100 + 3, 200 + 3, 4.0)  # two steps of midpoint
    assert 1.3 * short.operations < long.operations < 3 * short.operations
    alone = decoder_voice._ar_operations(128 + 100, None)
    assert short.operations > alone


def test_parts_that_do_not_fit_are_refused(decoder_folder, decoder_voice, tiny_voice, tmp_path):
    ar, flow = decoder_voice.ar.config, decoder_voice.flow.config
    with pytest.raises(InputError, match=r"here: a flow reads a unit of every frame .* timing 'sequence'"):
        check_flow(tmp_path / "here", tiny_voice.ar.config, flow)
    with pytest.raises(InputError, match="the AR model has semantic units: 12, the flow 9; both must be of one voice"):
        check_flow(tmp_path, ar, dataclasses.replace(flow, num_units=9))
    with pytest.raises(InputError, match="a voice of kind 'codec_flow'; a voice of the codec language model"):
        load_codec_voice(decoder_folder)
    shutil.copytree(decoder_folder, tmp_path / "voice")
    shutil.rmtree(tmp_path / "voice" / "flow")
    with pytest.raises(InputError, match="flow: no checkpoint here"):
        vox.load(tmp_path / "voice")
