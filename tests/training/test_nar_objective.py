import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.packing import Clip, pack
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.training import nar
from voxinstruct_jax.training.nar import NARObjective, draw_masks, nar_loss
from voxinstruct_jax.training.step import loss_of
from voxinstruct_jax.vocabulary import Vocabulary, build_layout

VOCABULARY = Vocabulary(num_semantic=8, codebook_size=8, num_codebooks=4)
CONFIG = NARConfig.tiny(vocabulary=VOCABULARY, channel_sizes=(5,))


def values(outcome):
    parts, metrics = outcome
    return loss_of(parts), {name: mean.value for name, mean in metrics.items()}


LENGTHS = (12, 5, 2)
"""Acoustic tokens of the clips of each row, EOS2 counted."""


class Clips:
    """The acoustic part of every clip of a drawn batch, as [row codebook place]."""

    def __init__(self, batch, draw):
        self.codebook = np.asarray(draw.codebook)
        self.parts = []
        acoustic = np.asarray(batch.part_ids) == 2
        for number in range(1, len(LENGTHS) + 1):
            where = np.nonzero(acoustic & (np.asarray(batch.segment_ids) == number))
            slots = where[1].reshape(len(self.codebook), -1)
            masked = np.take_along_axis(np.asarray(draw.masked), slots, axis=1)
            visible = np.take_along_axis(np.asarray(draw.tokens), slots[:, None], axis=2) > 0
            self.parts.append((masked, visible))


@pytest.fixture(scope="module")
def batch(make_batch):
    random = np.random.default_rng(0)
    clips = [(random.integers(0, 8, 2), random.integers(0, 8, (4, length - 1))) for length in LENGTHS]
    return make_batch(VOCABULARY, [clips] * 600)


@functools.partial(jax.jit, static_argnums=0)
def draw(objective, batch, key):
    found = draw_masks(objective, CONFIG, batch, key)
    return found.codebook, found.tokens, found.masked


@pytest.fixture(scope="module")
def drawn(batch):
    return nar.MaskDraw(*draw(NARObjective(), batch, jax.random.key(0)))


def test_every_predicted_codebook_is_drawn_about_equally_often(drawn):
    counts = np.bincount(drawn.codebook, minlength=4)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / 600, 1 / 3, atol=0.08)  # 4 sigma


def test_lower_codebooks_are_visible_and_higher_ones_only_in_the_prompt(batch, drawn):
    clips = Clips(batch, drawn)
    for masked, visible in clips.parts:
        for row, codebook in enumerate(clips.codebook):
            assert visible[row, :codebook].all()
            np.testing.assert_array_equal(visible[row, codebook], ~masked[row])
            higher = visible[row, codebook + 1 :]
            assert (higher == higher[:1]).all()
            prompt = np.flatnonzero(~higher[0])[0] if len(higher) else 0
            assert not masked[row, :prompt].any()
            assert not higher[:, prompt:].any()


def test_the_prompt_is_never_the_whole_clip_and_something_is_always_masked(batch, drawn):
    clips = Clips(batch, drawn)
    for masked, visible in clips.parts:
        assert (masked.sum(axis=1) >= 1).all()
        asked_low = clips.codebook < 3
        assert (visible[asked_low, 3].sum(axis=1) < visible.shape[2]).all()


def test_text_and_semantic_tokens_stay_and_padding_is_never_masked(batch, drawn):
    others = np.asarray(batch.part_ids) != 2
    tokens = np.moveaxis(np.asarray(drawn.tokens), 1, -1)
    np.testing.assert_array_equal(tokens[others], np.moveaxis(np.asarray(batch.tokens), 1, -1)[others])
    assert not np.asarray(drawn.masked)[others].any()


def test_shares_of_prompts_and_masks_are_those_of_the_paper(batch, drawn):
    clips = Clips(batch, drawn)
    _, visible = clips.parts[0]
    low = clips.codebook < 3
    prompts = visible[low, 3].sum(axis=1)  # P = floor(12 v), v ~ U(0, 1), or none with probability .3
    assert np.mean(prompts == 0) == pytest.approx(0.3 + 0.7 / 12, abs=0.1)
    assert prompts[prompts > 0].mean() == pytest.approx(6.0, abs=0.9)
    assert set(range(12)) == set(prompts.tolist())
    objective = NARObjective(drop_prompt=1.0)
    without = Clips(batch, nar.MaskDraw(*draw(objective, batch, jax.random.key(1)))).parts[0]
    # E floor(12 cos(pi u / 2)) is the sum over k = 1 .. 12 of P(cos(pi u / 2) >= k / 12); none of 12 becomes one
    expected = sum(2 / math.pi * math.acos(k / 12) for k in range(1, 13)) + 1 - 2 / math.pi * math.acos(1 / 12)
    assert without[0].sum(axis=1).mean() == pytest.approx(expected, abs=0.6)
    np.testing.assert_allclose(without[0].mean(axis=0), expected / 12, atol=0.09)  # every place alike


def test_clips_of_a_row_have_prompts_and_masks_of_their_own(batch, drawn):
    (first, _), (second, _), _ = Clips(batch, drawn).parts
    correlation = np.corrcoef(first.sum(axis=1), second.sum(axis=1))[0, 1]
    assert abs(correlation) < 0.2


def test_prompt_and_mask_lengths_follow_the_formula(batch, monkeypatch):
    @jax.jit
    def draw_given(share, ratio):
        # in the order of the draws: whether there is a prompt, its share, the mask ratio
        values = iter([0.9, share, ratio])
        monkeypatch.setattr(nar, "clip_uniform", lambda keys, ids: jnp.full(ids.shape, next(values), jnp.float32))
        found = draw_masks(NARObjective(), CONFIG, batch, jax.random.key(0))
        return found.codebook, found.tokens, found.masked

    # P = floor(v L) and max(1, floor((L - P) cos(pi u / 2))) for L = 12, 5, 2
    cases = [
        (0.5, 0.5, (6, 2, 1), (4, 2, 1)),  # cos(pi / 4) = .7071: 4.24, 2.12, .71
        (0.0, 0.0, (0, 0, 0), (12, 5, 2)),
        (0.99, 0.1, (11, 4, 1), (1, 1, 1)),
        (0.25, 0.66, (3, 1, 0), (4, 2, 1)),  # cos(.33 pi) = .5090: 4.58, 2.04, 1.02
    ]
    for share, ratio, prompts, counts in cases:
        clips = Clips(batch, nar.MaskDraw(*draw_given(share, ratio)))
        low = clips.codebook < 3
        for (masked, visible), prompt, count in zip(clips.parts, prompts, counts, strict=True):
            np.testing.assert_array_equal(masked.sum(axis=1), count)
            np.testing.assert_array_equal(visible[low, 3].sum(axis=1), prompt)


def test_frames_lent_by_another_clip_are_always_part_of_the_prompt():
    layout = build_layout(VOCABULARY, "en", np.array([1]), np.random.default_rng(0).integers(0, 8, (4, 9)))
    clip = Clip(text_tokens=np.ones((2, 1), np.int32), layout=layout, prompt_frames=4)
    batch = jax.tree.map(jnp.asarray, pack([[clip]] * 50, text_width=2, time_width=20, clip_ids=np.arange(50)))
    found = nar.MaskDraw(*draw(NARObjective(drop_prompt=1.0), batch, jax.random.key(0)))
    acoustic = np.flatnonzero(np.asarray(batch.part_ids[0]) == 2)
    assert not np.asarray(found.masked)[:, acoustic[:4]].any()
    np.testing.assert_array_equal(found.tokens[:, :, acoustic[:4]], batch.tokens[:, :, acoustic[:4]])
    assert np.asarray(found.masked)[:, acoustic[4]].any()


def test_classes_count_codes_from_zero_and_eos2_is_the_last(worked_example):
    class Oracle(NARModel):
        def __init__(self):
            self.config, self.execution = NARConfig.tiny(vocabulary=Vocabulary(), channel_sizes=(5,)), Execution()

        def embed_text(self, text_tokens, text_segment_ids, *, key=None):
            return jnp.zeros((*text_segment_ids.shape, 32))

        def logits(self, hidden, codebook):
            return hidden

        def hidden(self, batch, text_rows, codebook, *, key=None):
            # frame t of codebook q holds code 100 q + t; EOS2 is class 1026; slots: 2 text, 6 semantic, then these
            classes = jnp.append(100 * codebook[0] + jnp.arange(5), 1026)
            return jnp.zeros((1, 16, 1027)).at[0, jnp.arange(8, 14), classes].set(100.0)

    evaluate = jax.jit(lambda key: values(nar_loss(NARObjective(), Oracle(), worked_example, key)))
    for seed in range(4):
        loss, metrics = evaluate(jax.random.key(seed))
        assert float(loss) == pytest.approx(0, abs=1e-5)
        assert float(metrics["accuracy"]) == 1


def test_the_loss_counts_masked_places_only(worked_example):
    class Indifferent(NARModel):
        def __init__(self):
            self.config, self.execution = NARConfig.tiny(vocabulary=Vocabulary(), channel_sizes=(5,)), Execution()

        def embed_text(self, text_tokens, text_segment_ids, *, key=None):
            return jnp.zeros((*text_segment_ids.shape, 32))

        def logits(self, hidden, codebook):
            return hidden

        def hidden(self, batch, text_rows, codebook, *, key=None):
            return jnp.zeros((1, 16, 1027))

    evaluate = jax.jit(lambda key: values(nar_loss(NARObjective(), Indifferent(), worked_example, key)))
    loss, _ = evaluate(jax.random.key(0))
    assert float(loss) == pytest.approx(math.log(1027), rel=1e-5)


def test_a_probability_beyond_one_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.drop_prompt: 1\.5 is no probability; give 0 to 1"):
        NARObjective(drop_prompt=1.5)
