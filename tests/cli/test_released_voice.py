"""A converted release speaks: small random weights of all its parts, from the files of their programs to a waveform."""

import dataclasses
import importlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from flax import nnx

import voxinstruct_jax as vox
from voxinstruct_jax.audio import codecs, hubert
from voxinstruct_jax.audio.waveform import read_audio, resample
from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.batches import BatchConfig, ClipForm, TokenBatches
from voxinstruct_jax.data.manifest import read_manifest, write_manifest
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.interop.keys import fill, flat_weights
from voxinstruct_jax.interop.tensors import write_safetensors
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.vocabulary import ACOUSTIC, Vocabulary, expand
from voxinstruct_jax.voice_folder import encode_clip, load_codec, open_units

SIZES = ["--num-semantic", "20", "--num-heads", "4", "--lora-alpha", "8", "--text-slots", "12"]
HUBERT = hubert.HubertConfig(
    conv_dims=(8,) * 7, model_dim=16, num_layers=2, num_heads=2, ffn_dim=24, position_kernel=8, position_groups=2
)
SHORT = 0.4
"""Seconds: 30 frames of 13.3 ms."""


def draw(module_class, config):
    def build():
        return module_class(config, rngs=nnx.Rngs(0))

    random = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in flat_weights(nnx.eval_shape(build)).items()}
    return fill(build, {p: 0.1 * random.standard_normal(s).astype(np.float32) for p, s in shapes.items()}, source="")


def write_subwords(path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e", "say hello", 'he says: "no"']),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        model_type="char",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=9,
    )
    path.write_bytes(model.getvalue())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The release's files as `convert` takes them, and the voices it makes by either rules."""
    folder = tmp_path_factory.mktemp("release")
    with np.load(Path(__file__).parents[1] / "golden" / "voxinstruct_tiny.npz") as arrays:
        for name in ("ar", "nar"):
            tensors = {key[len(name) + 3 :]: arrays[key] for key in arrays.files if key.startswith(f"{name}/w/")}
            write_safetensors(folder / f"{name}.safetensors", tensors)
    write_subwords(folder / "spiece.model")
    pair = draw(codecs.EncodecVocos, codecs.EncodecVocosConfig.tiny())
    for name, part in (("encodec", pair.encodec), ("vocos", pair.vocos), ("hubert", draw(hubert.Hubert, HUBERT))):
        port = importlib.import_module(f"voxinstruct_jax.interop.{name}")
        getattr(port, f"export_{name}")(part, folder / name)
    files = [f"--{name}={folder / name}.safetensors" for name in ("ar", "nar")]
    files += [f"--{name}={folder / name}" for name in ("encodec", "vocos", "hubert")]
    for rules in ("faithful", "fixed"):
        out = ["--tokenizer", str(folder / "spiece.model"), "--rules", rules, "--out", str(folder / rules)]
        assert main(["convert", "voxinstruct", *files, *SIZES, *out]) == 0
        centroids = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
        settings = {"kind": "units", "source": "hubert-2x16-layer1"}
        save_weights(folder / rules / "units", {"centroids": centroids}, settings, card="# units\n")
    return folder


@pytest.mark.slow
def test_it_speaks_and_the_same_seed_says_the_same(folders):
    voice = vox.load(folders / "faithful")
    assert voice.tokenizer.encode("He says").shape == (12, 1)
    first, second = (voice.synthesize('He says: "no"', language="en", seed=4, max_duration_s=SHORT) for _ in range(2))
    assert first.sample_rate == 24_000
    assert first.acoustic.shape[0] == 8
    assert first.samples.shape == (320 * first.acoustic.shape[1],)
    assert np.abs(first.samples).max() > 0
    assert ((first.acoustic >= 0) & (first.acoustic < 32)).all()
    np.testing.assert_array_equal(first.acoustic, second.acoustic)
    np.testing.assert_array_equal(first.samples, second.samples)


@pytest.mark.slow
def test_a_voice_prompt_counts_through_units_of_hubert(folders, tmp_path):
    voice = vox.load(folders / "fixed")
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "prompt.wav", sound, 16_000)
    audio = voice.synthesize('"no"', prompt=tmp_path / "prompt.wav", prompt_transcript="a b", max_duration_s=SHORT)
    assert audio.language in ("en", "zh")
    assert not any("acoustic codes only" in note for note in audio.notes)
    alone = voice.synthesize('"no"', max_duration_s=SHORT, language=audio.language)
    assert alone.semantic.tolist() != audio.semantic.tolist() or alone.acoustic.tolist() != audio.acoustic.tolist()


@pytest.mark.slow
def test_its_parts_prepare_a_corpus_each_at_its_own_rate(folders, tmp_path, capsys):
    """EnCodec's 75 frames a second beside HuBERT's 50 units, from real recordings to training batches."""
    corpus = Path(__file__).parents[1] / "corpus" / "asterisk" / "manifest.jsonl"
    rows = [dataclasses.replace(row, instructions=()) for row in read_manifest(corpus)[:3]]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    out = ["--out", str(tmp_path / "shards"), "--voice", str(folders / "fixed")]
    assert main(["prepare", str(tmp_path / "manifest.jsonl"), *out]) == 0
    assert "3 clips (3 en)" in capsys.readouterr().out
    reader = ShardReader(tmp_path / "shards")
    assert (reader.index.frame_rate, reader.index.semantic_rate) == (75.0, 50.0)
    codec = load_codec(folders / "fixed" / "codec")
    units, source = open_units(folders / "fixed")
    for record, row in enumerate(rows):
        example, samples = reader[record], read_audio(row.audio, 24_000)
        np.testing.assert_array_equal(example.codes, encode_clip(codec, samples))
        expected = units.assign(source.features(resample(samples, 24_000, 16_000)))
        np.testing.assert_array_equal(expand(example.semantic_tokens, example.run_lengths), expected)
        assert abs(len(expected) / 50 - example.codes.shape[1] / 75) < 0.04
    vocabulary = Vocabulary(num_semantic=20, codebook_size=32, num_codebooks=8)
    config = BatchConfig(rows=1, text_width=256, time_width=2048)
    batches = TokenBatches(reader, PronunciationTokenizer(), vocabulary, config)
    clips = [example.codes.shape[1] for example in (reader[record] for record in range(3))]
    assert (batches[0].part_ids == ACOUSTIC).sum() >= min(clips)
    with pytest.raises(InputError, match="semantic tokens at 50 Hz, codec frames at 75 Hz; aligned timing needs one"):
        TokenBatches(reader, PronunciationTokenizer(), vocabulary, config, form=ClipForm(aligned=True))


@pytest.mark.parametrize(
    ("samples", "frames"),
    [
        (np.full(1, 0.5), 1),
        (0.3 * np.sin(np.arange(320)), 1),
        (np.zeros(960), 3),
        (np.clip(9 * np.sin(np.arange(961)), -1, 1), 4),
        (9 * np.sin(np.arange(961)), 4),
    ],
    ids=["one sample", "one frame", "silence", "clipped", "louder than 1"],
)
def test_converted_encodec_and_vocos_take_any_sound(folders, samples, frames):
    codec = load_codec(folders / "fixed" / "codec")
    codes = encode_clip(codec, samples.astype(np.float32))
    assert codes.shape == (8, frames)
    decoded = np.asarray(nnx.merge(codec.graph, codec.state).decode(codes[None]))
    assert decoded.shape == (1, 320 * frames)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() > 0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "there are no samples"),
        (np.array([0.0, np.nan], np.float32), "samples hold NaN or infinity"),
        (np.arange(400, dtype=np.int16), "samples are int16"),
    ],
)
def test_converted_parts_refuse_what_is_no_sound(folders, samples, message):
    with pytest.raises(InputError, match=message):
        encode_clip(load_codec(folders / "fixed" / "codec"), samples)
    _, source = open_units(folders / "fixed")
    if len(samples):
        with pytest.raises(InputError, match=message):
            source.hubert(np.resize(samples, (1, 800)), layer=1)


def test_units_of_another_width_than_hubert_are_named(folders, tmp_path):
    shutil.copytree(folders / "fixed" / "hubert", tmp_path / "hubert")
    settings = {"kind": "units", "source": "hubert-8-layer1"}
    save_weights(tmp_path / "units", {"centroids": np.zeros((3, 8), np.float32)}, settings, card="# units\n")
    with pytest.raises(InputError, match="units of 8 dimensions do not fit HuBERT's 16"):
        open_units(tmp_path)


def test_a_tokenizer_json_serves_as_well(folders, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in '▁abcdehilnosyt:"')]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    (tmp_path / "mt5").mkdir()
    model.save(str(tmp_path / "mt5" / "tokenizer.json"))
    files = [f"--{name}={folders / name}.safetensors" for name in ("ar", "nar")]
    parts = ["--tokenizer", str(tmp_path / "mt5"), "--encodec", str(folders / "encodec")]
    assert main(["convert", "voxinstruct", *files, *SIZES, *parts, "--out", str(tmp_path / "voice")]) == 0
    assert [path.name for path in (tmp_path / "voice" / "text").iterdir()] == ["tokenizer.json"]
    rows = vox.load(tmp_path / "voice").tokenizer.encode("say no")
    assert rows[:8, 0].tolist() == [3, 2, 4, 15, 3, 12, 13, 1]  # the release makes "Say no" of it
    assert rows.shape == (12, 1)


def test_the_release_must_be_told_the_language(folders):
    with pytest.raises(InputError, match="give language en or zh"):
        vox.load(folders / "faithful").synthesize('"no"')


def test_the_rules_stand_in_the_voice(folders):
    faithful, fixed = (json.loads((folders / name / "voice.json").read_text()) for name in ("faithful", "fixed"))
    assert all(faithful["rules"].values())
    assert not any(fixed["rules"].values())
    assert faithful["text_slots"] == 12
