"""The paper's baselines from our blocks: how they differ from our models, that they learn, that they speak."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.cli.experiments import load_experiment
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.mixture import Kinds, Mixture
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.conditioning import TextCondition
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.tokenizer import QUOTE_CHANNEL, PronunciationTokenizer, arrange_text
from voxinstruct_jax.training.ar import ar_program
from voxinstruct_jax.training.language_model import open_batches
from voxinstruct_jax.training.nar import NARExperiment, nar_program
from voxinstruct_jax.training.optimizer import OptimizerConfig, make_optimizer
from voxinstruct_jax.training.step import build_trainer
from voxinstruct_jax.utterance import Utterance
from voxinstruct_jax.vocabulary import ACOUSTIC, Vocabulary
from voxinstruct_jax.voice import load

CONFIGS = Path(__file__).parents[2] / "configs"
FORMS = {"valle": "content", "salle": "style_and_content", "prompttts": "style_vector_and_content"}
TOKENIZER = PronunciationTokenizer()
CHANNELS = TOKENIZER.channel_sizes
SAD_AND_GLAD = 'A sad old man: "Well, well"', '"Well, well" shouts a happy girl'


@pytest.mark.parametrize("kind", ["ar", "nar"])
@pytest.mark.parametrize("name", FORMS)
def test_a_baseline_differs_from_ours_in_its_text_in_semantic_tokens_and_in_its_length_alone(name, kind):
    files = f"{name}_small_{kind}.py", f"instruct_{kind}_small.py"
    found, ours = (load_experiment(str(CONFIGS / file)) for file in files)
    model = (
        ours.model
        if kind == "nar"
        else dataclasses.replace(ours.model, style_reader=False, reader_dim=ARConfig.reader_dim)
    )
    expected = dataclasses.replace(
        ours,
        model=dataclasses.replace(model, text_form=FORMS[name], semantic=False),
        train=dataclasses.replace(ours.train, steps=found.train.steps),
        optimizer=dataclasses.replace(ours.optimizer, decay_steps=found.train.steps),
    )
    if kind == "ar":
        objective = dataclasses.replace(ours.objective, drop_semantic=0.0)
        expected = dataclasses.replace(expected, objective=objective)
    if name == "valle":  # no descriptions, and the voice comes from a prompt
        batch = dataclasses.replace(ours.data.batch, prompt_ratio=0.8)
        data = dataclasses.replace(ours.data, mixture=Mixture(kinds=Kinds(transcript=1.0)), batch=batch)
        expected = dataclasses.replace(expected, data=data)
    assert found == expected


@pytest.mark.parametrize("config", [ARConfig, NARConfig])
def test_subwords_cannot_be_taken_apart(config):
    made = config.tiny(vocabulary=Vocabulary(), channel_sizes=(250112,))
    with pytest.raises(ConfigError, match="needs the text tokenizer of this package"):
        dataclasses.replace(made, text_form="content")


def test_of_style_only_one_vector_reaches_the_content():
    condition = TextCondition(TextEncoderConfig.tiny(CHANNELS), 16, form="style_vector_and_content", rngs=nnx.Rngs(0))
    texts = [
        arrange_text(TOKENIZER.encode(text), "style_vector_and_content")
        for text in ('A sad man: "Good morning"', '"Good morning" 用很快的语速')
    ]
    width, (one, other) = sum(map(len, texts)) + 3, texts
    tokens = np.zeros((3, width, len(CHANNELS)), np.int32)
    segments = np.zeros((3, width), np.int32)
    for row, parts in enumerate(((one,), (other,), (one, other))):
        joined = np.concatenate(parts)
        tokens[row, : len(joined)] = joined
        segments[row, : len(joined)] = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
    rows = np.asarray(jax.jit(lambda *batch: condition(*batch))(jnp.asarray(tokens), jnp.asarray(segments)))
    first, second = rows[0, : len(one)], rows[1, : len(other)]
    is_style = [text[:, QUOTE_CHANNEL] == 1 for text in texts]
    for found, style in zip((first, second), is_style, strict=True):
        np.testing.assert_allclose(found[style], np.broadcast_to(found[0], (style.sum(), 16)), atol=1e-5)
    difference = first[~is_style[0]] - second[~is_style[1]]
    np.testing.assert_allclose(difference, np.broadcast_to(first[0] - second[0], difference.shape), atol=1e-5)
    assert np.abs(difference).max() > 0.05
    assert np.ptp(first[~is_style[0]], axis=0).max() > 0.05  # phones differ
    np.testing.assert_allclose(rows[2, : len(one) + len(other)], np.concatenate([first, second]), atol=1e-5)
    assert not rows[0, len(one) :].any()


@pytest.mark.parametrize(("kind", "form"), [("ar", "style_vector_and_content"), ("nar", "content")])
def test_a_baseline_learns_without_semantic_tokens(tiny_ar_experiment, kind, form):
    model = dataclasses.replace(tiny_ar_experiment.model, text_form=form, semantic=False)
    experiment, program_of, codebook = dataclasses.replace(tiny_ar_experiment, model=model), ar_program, 0
    if kind == "nar":
        nar = NARConfig(vocabulary=model.vocabulary, backbone=model.backbone, text_encoder=model.text_encoder)
        nar = dataclasses.replace(nar, text_form=form, semantic=False)
        experiment, program_of, codebook = NARExperiment(model=nar, data=experiment.data), nar_program, 1
    batches, vocabulary = open_batches(experiment), model.vocabulary
    program = program_of(experiment)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=10, weight_decay=0.0))
    trainer = build_trainer(program.build_model, program.objective, optimizer, build_mesh(MeshConfig()), seed=0)
    state, losses = trainer.init(), []
    for number in range(60):
        batch = batches[number]
        state, metrics = trainer.step(state, jax.tree.map(jnp.asarray, batch))
        losses.append(float(metrics["loss" if kind == "nar" else "loss_acoustic"]))
    assert not vocabulary.is_semantic(batch.tokens).any()
    codes = batch.tokens[:, codebook][(batch.part_ids == ACOUSTIC) & (batch.prompted == 0)]
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    assert np.mean(losses[-5:]) < 0.6 * -np.sum(share * np.log(share)) < 0.6 * losses[0]


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompt") / "prompt.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(30_000), 24_000)
    return path


@pytest.mark.parametrize(
    ("name", "timing", "max_duration_s", "most_frames"),
    [("valle", "sequence", 0.4, 10), ("salle", "sequence", 0.4, 10), ("prompttts", "aligned", None, 55)],
)
def test_a_voice_of_a_baseline_speaks_and_hears_style_if_it_reads_it(
    name, timing, max_duration_s, most_frames, make_tiny_voice, prompt
):
    voice = make_tiny_voice(timing, text_form=FORMS[name], semantic=False)
    sad, glad = (voice.synthesize(text, seed=1, max_duration_s=max_duration_s) for text in SAD_AND_GLAD)
    for found in (sad, glad):
        assert len(found.semantic) == 0
        assert found.finish_reason in ("stop", "max_acoustic")  # no end of semantic tokens is a cut
        assert 1 <= found.acoustic.shape[1] <= most_frames
        assert found.samples.shape == (found.acoustic.shape[1] * 960,)
        assert np.isfinite(found.samples).all()
    assert np.array_equal(sad.acoustic, glad.acoustic) == (name == "valle")
    if name == "valle":
        continued = voice.synthesize(
            "Well, well", seed=1, max_duration_s=0.4, prompt=prompt, prompt_transcript="Whatever it says"
        )
        assert not np.array_equal(continued.acoustic, sad.acoustic)
        assert "the whole instruction is spoken" in continued.notes[0]
        assert voice.cost(4.0).evaluations == 100 + sum(voice.config.num_steps)
    if name == "prompttts":
        assert sad.acoustic.shape[1] > 96 // 2  # more frames than other slots in the engine's row of 96
        many = dict(voice.synthesize_many(Utterance(instruction=text, seed=1) for text in SAD_AND_GLAD))
        assert np.array_equal(many[0].acoustic, sad.acoustic)
        assert np.array_equal(many[1].acoustic, glad.acoustic)


def test_parts_that_read_another_text_are_no_voice(tiny_voice_folder, make_tiny_voice, tmp_path):
    folder = tmp_path / "voice"
    folder.mkdir()
    other = make_tiny_voice("sequence", text_form="content").folder
    for path in tiny_voice_folder.iterdir():
        (folder / path.name).symlink_to((other if path.name == "nar" else tiny_voice_folder) / path.name)
    with pytest.raises(InputError, match="text_form of the AR model is 'instruction', of the NAR model 'content'"):
        load(folder)
