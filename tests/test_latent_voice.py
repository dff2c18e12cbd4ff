"""Voices of latent diffusion models: from a run to sound, by the same calls as the codec language model's."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

import voxinstruct_jax as vox
from voxinstruct_jax import latent_voice
from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.audio.vocos import MelVocoder, MelVocoderConfig, VocosConfig
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError, to_dict
from voxinstruct_jax.diffusion.phone_speech import phone_durations
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.jobs.units import Speaker
from voxinstruct_jax.latent_voice import KIND, LatentVoiceConfig
from voxinstruct_jax.models.grad_tts import GradTTS, GradTTSConfig
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion
from voxinstruct_jax.models.masked_latents import MaskedLatentDiffusion, MaskedLatentsConfig, TokenHeadConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.models.phone_encoder import PhoneEncoderConfig
from voxinstruct_jax.text.lengths import LengthLine
from voxinstruct_jax.text.phones import NUM_PHONES, phone_ids
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.utterance import Utterance
from voxinstruct_jax.voice import load as load_codec_voice
from voxinstruct_jax.voice_folder import write_voice_settings
from voxinstruct_jax.voices import AnyVoice

CODEC = LatentConfig(codec=CodecConfig.tiny())
MEL = LatentConfig(mel=MelConfig(sample_rate=16_000, num_mels=8, n_fft=1024, hop_length=512, f_max=8000.0))
LENGTH = LengthLine(start_s=0.2, s_per_syllable=0.2)


def write_voice(write_random_part, folder, system, latents, **more):
    """A voice of a tiny network with random weights."""
    channels = PronunciationTokenizer().channel_sizes
    if system == "unison":
        model = MMDiTConfig.unison_tiny(latents.channels, channels)
        small = {"num_layers": 2}
    else:
        model = MMDiTConfig.instructaudio_tiny(latents.channels, channels, NUM_PHONES)
        model = dataclasses.replace(model, phones=dataclasses.replace(model.phones, num_layers=1))
        small = {"num_layers": 1}
    encoder = dataclasses.replace(model.text_encoder, **small)
    model = dataclasses.replace(model, model_dim=48, rotary_dims=12, joint_blocks=2, text_encoder=encoder)
    build = functools.partial(LatentDiffusion, latents=latents)
    write_random_part(folder / "denoiser", "diffusion", model, build, latents=to_dict(latents))
    return write_config(folder, system, **more)


def write_config(folder, system, **more):
    diffusion = SYSTEMS[system]
    grid = dataclasses.replace(diffusion.sampler.grid, steps=3)
    config = LatentVoiceConfig(
        diffusion=dataclasses.replace(diffusion, sampler=dataclasses.replace(diffusion.sampler, grid=grid)),
        length=LENGTH,
        batch_size=3,
        text_fingerprint=PronunciationTokenizer().fingerprint,
        **more,
    )
    write_voice_settings(folder, KIND, config)
    return folder


@pytest.fixture(scope="module")
def instruct_folder(random_part, tmp_path_factory):
    return write_voice(random_part, tmp_path_factory.mktemp("voices") / "instruct", "instructaudio", CODEC)


@pytest.fixture(scope="module")
def instruct_voice(instruct_folder):
    return vox.load(instruct_folder)


@pytest.fixture(scope="module")
def grad_tts_voice(random_part, tmp_path_factory):
    """Of random weights: durations lie around a frame a phone."""
    network = MMDiTConfig.told_frame_by_frame(CODEC.channels, PronunciationTokenizer().channel_sizes)
    encoder = dataclasses.replace(network.text_encoder, num_layers=1, ffn_dim=64)
    network = dataclasses.replace(network, model_dim=32, rotary_dims=8, single_blocks=1, text_encoder=encoder)
    phones = PhoneEncoderConfig(num_phones=NUM_PHONES, model_dim=32, num_layers=1, num_heads=4, ffn_dim=32)
    folder = tmp_path_factory.mktemp("voices") / "grad_tts"
    random_part(folder / "denoiser", "grad_tts", GradTTSConfig(network=network, phones=phones, latents=CODEC), GradTTS)
    return vox.load(write_config(folder, "grad_tts"))


@pytest.fixture(scope="module")
def masked_voice(random_part, tmp_path_factory):
    tiny = MMDiTConfig.instructaudio_tiny(CODEC.channels + 1, PronunciationTokenizer().channel_sizes, NUM_PHONES)
    encoder = dataclasses.replace(tiny.text_encoder, num_layers=1)
    phones = dataclasses.replace(tiny.phones, num_layers=1)
    network = dataclasses.replace(
        tiny, model_dim=32, rotary_dims=8, joint_blocks=1, output_channels=16, text_encoder=encoder, phones=phones
    )
    model = MaskedLatentsConfig(network=network, head=TokenHeadConfig(model_dim=16, num_layers=1))
    folder, build = (
        tmp_path_factory.mktemp("voices") / "masked",
        functools.partial(MaskedLatentDiffusion, latents=CODEC),
    )
    random_part(folder / "denoiser", "masked_latents", model, build, latents=to_dict(CODEC))
    return vox.load(write_config(folder, "impact", rounds=2))


@pytest.fixture(scope="module")
def unison_folder(random_part, tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices") / "unison"
    more = {"clip_s": 2.0, "pad_is_silence": True, "prompts": True}
    return write_voice(random_part, folder, "unison", MEL, **more)


WORDS = ("yes", "no way", "we won", "好", "not at all", "go", "come on now")
UTTERANCES = [Utterance(instruction=f'Say happily: "{word}"', seed=seed) for seed, word in enumerate(WORDS)]


def test_the_length_follows_from_the_words(instruct_voice):
    assert isinstance(instruct_voice, AnyVoice)
    assert isinstance(instruct_voice, Speaker)
    found = instruct_voice.synthesize('A woman says: "we won"', seed=3)
    frames = round((0.2 + 0.2 * 2) * 25)
    assert found.samples.shape == (frames * 960,)
    assert (found.sample_rate, found.finish_reason, found.seed, found.language) == (24_000, "stop", 3, "en")
    assert np.isfinite(found.samples).all()
    assert (len(found.semantic), found.acoustic.size, found.notes) == (0, 0, ())
    assert found.model.startswith("instruct ")
    assert instruct_voice.synthesize("女人说：“好”").language == "zh"
    short = instruct_voice.synthesize('Say "we won"', max_duration_s=0.4)
    assert len(short.samples) == 10 * 960
    assert "spoken in 0.4 s" in short.notes[0]


def test_a_dialogue_takes_as_long_as_its_words(instruct_voice):
    found = instruct_voice.synthesize('Two friends talk: "[S0] we won. [S1] no way."')
    assert len(found.samples) == round((0.2 + 0.2 * 4) * 25) * 960
    other = instruct_voice.synthesize('Two friends talk: "[S1] we won. [S0] no way."')
    assert not np.array_equal(found.samples, other.samples)
    with pytest.raises(InputError, match="speaker 2: a dialogue has speakers 0 to 1"):
        instruct_voice.synthesize('Two friends talk: "[S2] we won."')


@pytest.mark.parametrize("name", ["instruct_voice", "grad_tts_voice", "masked_voice"])
def test_many_are_the_same_whatever_their_neighbours_are(name, request):
    voice = request.getfixturevalue(name)

    def spoken(utterances):
        found = dict(voice.synthesize_many(utterances))
        assert sorted(found) == list(range(len(utterances)))
        return [found[place].samples for place in range(len(utterances))]

    together, turned, alone = spoken(UTTERANCES), spoken(UTTERANCES[::-1]), spoken(UTTERANCES[2:3])
    for one, other in zip(together, turned[::-1], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(together[2], alone[0])
    again = voice.synthesize(UTTERANCES[2].instruction, seed=2).samples
    np.testing.assert_allclose(again, alone[0], atol=1e-3 * np.abs(again).max())
    reseeded = voice.synthesize(UTTERANCES[2].instruction, seed=3).samples
    assert not np.allclose(reseeded, again, atol=1e-2 * np.abs(again).max())


def test_grad_tts_says_itself_how_long_it_speaks(grad_tts_voice):
    model = nnx.merge(grad_tts_voice.model.graph, grad_tts_voice.model.state)
    phones = jnp.asarray(phone_ids([(0, "not at all")], PronunciationTokenizer())[None, 1:])
    log_durations = model.encode(phones, phones > 0)[1]
    durations = np.asarray(phone_durations(log_durations, phones > 0))[0]
    asked = 'Say "not at all"'
    found = grad_tts_voice.synthesize(asked)
    assert len(found.samples) == durations.sum() * 960
    assert durations.sum() >= len(durations) > 8
    assert found.notes == ()
    slow = np.asarray(phone_durations(log_durations, phones > 0, 3.0))[0]
    assert abs(slow.sum() - 3 * np.exp(np.asarray(log_durations)).sum()) < len(slow)
    short = grad_tts_voice.synthesize(asked, max_duration_s=0.2)
    assert len(short.samples) == 5 * 960
    assert "spoken in 0.2 s" in short.notes[0]
    assert grad_tts_voice.cost(4.0).evaluations == 3


def test_grad_tts_reads_the_phones_of_a_request_once(grad_tts_voice, monkeypatch):
    """Before it takes its program, which is told what was read; at another pace they are not read again either."""
    voice, calls = grad_tts_voice, []

    def counted(function):
        return lambda *given: calls.append(1) or function(*given)

    monkeypatch.setattr(latent_voice, "_compiled_encode", counted(latent_voice._compiled_encode))
    request = voice._prepare(Utterance(instruction='Say "not at all"', max_duration_s=0.2))
    assert (len(calls), request.durations.sum(), "spoken in 0.2 s" in request.notes[0]) == (1, 5, True)
    calls.clear()
    monkeypatch.setattr(GradTTS, "encode", counted(GradTTS.encode))
    program = functools.partial(latent_voice._sample, *voice._program(request.sizes.frames))
    rows = voice._rows([request], request.sizes, 1)
    assert jax.eval_shape(program, voice.model.state, None, rows).shape == (1, request.sizes.frames * 960)
    assert not calls


def test_masked_latents_count_the_passes_of_transformer_and_head(masked_voice):
    assert masked_voice.cost(4.0).evaluations == 2 * (1 + 3)


def test_what_cannot_be_spoken_fails_alone_and_what_does_not_apply_is_noted(instruct_voice, tmp_path):
    soundfile.write(tmp_path / "prompt.wav", 0.1 * np.ones(8000), 16_000)
    asked = [
        Utterance(instruction="..."),
        Utterance(instruction='Say "go"', prompt=tmp_path / "prompt.wav", guidance=Guidance()),
        Utterance(instruction='Say "go"', seed=-1),
        Utterance(instruction="go"),
    ]
    found = dict(instruct_voice.synthesize_many(asked))
    assert "holds no words" in str(found[0])
    assert "seed -1" in str(found[2])
    assert [note.split(";")[-1] for note in found[1].notes] == [" this voice keeps its own", " it is left out"]
    assert found[3].notes == ("no quoted words and no transcript: the whole instruction is spoken",)


def test_spectrograms_need_a_vocoder_of_their_own(unison_folder, random_part, tmp_path):
    with pytest.raises(InputError, match=r"no vocoder/; train configs/mel_vocoder_small.py with --model.mel"):
        vox.load(unison_folder)
    other = dataclasses.replace(MEL.mel, num_mels=9)
    write_vocoder(random_part, unison_folder, other)
    with pytest.raises(InputError, match="made for other spectrograms"):
        vox.load(unison_folder)


def write_vocoder(random_part, folder, mel):
    vocos = VocosConfig(dim=16, ffn_dim=32, num_layers=1, n_fft=mel.n_fft, hop_length=mel.hop_length)
    random_part(folder / "vocoder", "mel_vocoder", MelVocoderConfig(mel=mel, vocos=vocos), MelVocoder)


def test_a_model_that_knows_references_speaks_with_a_prompt(unison_folder, random_part, tmp_path):
    write_vocoder(random_part, unison_folder, MEL.mel)
    voice = vox.load(unison_folder)
    loud = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "prompt.wav", loud, 16_000, subtype="FLOAT")
    plain = voice.synthesize('Say "go"', seed=1)
    assert 0 < len(plain.samples) <= 2.0 * 16_000 + 512
    asked = {"prompt": tmp_path / "prompt.wav", "seed": 1}
    found = voice.synthesize('Say "go"', **asked)
    assert "rest of the instruction is not read" in found.notes[0]
    assert 0 < len(found.samples) <= 1.0 * 16_000 + 512
    soundfile.write(tmp_path / "quiet.wav", 0.1 * loud, 16_000, subtype="FLOAT")  # in training all have one level
    softly = voice.synthesize('Say "go"', prompt=tmp_path / "quiet.wav", seed=1)
    np.testing.assert_allclose(softly.samples, found.samples, atol=1e-2)
    told = voice.synthesize('Say "go"', prompt_transcript="hello", **asked)
    assert not np.array_equal(told.samples, found.samples)
    assert len(voice.synthesize('Say "go"', max_duration_s=0.5, seed=1).samples) <= 8000


def test_the_cost_counts_what_runs(instruct_voice, tiny_voice):
    long, short = instruct_voice.cost(8.0), instruct_voice.cost(4.0)
    assert (long.evaluations, long.seconds, short.seconds) == (3, 8.0, 4.0)
    assert 1.5 * short.operations < long.operations < 3 * short.operations
    grid = dataclasses.replace(instruct_voice.config.diffusion.sampler.grid, steps=6)
    sampler = dataclasses.replace(instruct_voice.config.diffusion.sampler, grid=grid)
    config = dataclasses.replace(
        instruct_voice.config, diffusion=dataclasses.replace(instruct_voice.config.diffusion, sampler=sampler)
    )
    twice = dataclasses.replace(instruct_voice, config=config).cost(4.0)
    assert 1.5 * short.operations < twice.operations < 2 * short.operations
    ours = tiny_voice.cost(4.0)
    assert ours.evaluations == 2 * 100 + 3
    assert ours.operations_per_s == ours.operations / 4


def test_commands_and_jobs_speak_with_it(instruct_folder, tmp_path, capsys):
    voice = ("--voice", str(instruct_folder))
    one = ["synthesize", *voice, "--instruction", 'Say "yes"', "--out", str(tmp_path / "yes.wav"), "--seed", "5"]
    assert main(one) == 0
    assert soundfile.info(tmp_path / "yes.wav").frames == 12 * 960  # no shorter than half a second
    rows = [{"id": word, "instruction": f'Say "{word}"', "seed": 1} for word in ("yes", "no", "好")]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["synthesize", *voice, "--requests", str(requests), "--out", str(tmp_path / "out"), "--attempts", "1"]
    capsys.readouterr()
    main([*arguments, "--workers", "2", "--unit-size", "1", "--json"])
    found = json.loads(capsys.readouterr().out)["results"]
    assert sorted(row["id"] for row in found if row["status"] != "failed") == ["no", "yes", "好"]
    again = {place: audio.samples for place, audio in vox.load(instruct_folder).synthesize_many(
        Utterance(instruction=row["instruction"], seed=1) for row in rows)}  # fmt: skip
    for place, row in enumerate(rows):
        [result] = [each for each in found if each["id"] == row["id"]]
        heard, _ = soundfile.read(tmp_path / "out" / result["audio"], dtype="float32")
        np.testing.assert_allclose(heard, np.clip(again[place], -1, 1), atol=1e-4)


def test_other_kinds_and_other_text_tables_are_refused(instruct_folder, random_part, tmp_path):
    with pytest.raises(InputError, match="a voice of the codec language model is needed here"):
        load_codec_voice(instruct_folder)
    (tmp_path / "voice.json").write_text('{"kind": "organ"}')
    with pytest.raises(InputError, match="a voice of kind 'organ', which this version does not know"):
        vox.load(tmp_path)
    settings = json.loads((instruct_folder / "voice.json").read_text())
    (tmp_path / "voice.json").write_text(json.dumps({**settings, "text_fingerprint": "old"}))
    (tmp_path / "denoiser").symlink_to(instruct_folder / "denoiser")
    with pytest.raises(InputError, match="made for text tables old"):
        vox.load(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "voice.json").write_text(json.dumps(settings))
    random_part(tmp_path / "other" / "denoiser", "codec", CodecConfig.tiny(), MelCodec)
    with pytest.raises(InputError, match="weights of kind 'codec', which make no latents; known: diffusion"):
        vox.load(tmp_path / "other")
