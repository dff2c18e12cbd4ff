"""The loop on the device against a plain one over whole sequences, and the promises it makes to a batch job."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import InputError
from voxinstruct_jax.decoding.autoregressive import decode_ar
from voxinstruct_jax.decoding.requests import ARRequest, Capacity, FinishReason, Limits, batch_requests
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.guidance import Branch, Guidance
from voxinstruct_jax.models.style import surely_asked
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, PackedBatch, build_prompt

NONE = Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)
LIMITS = Limits(min_semantic=2, max_semantic=5, min_acoustic=2, max_acoustic=7, max_total=100)
FREE = Limits(min_semantic=0, max_semantic=6, min_acoustic=0, max_acoustic=8, max_total=100)
ALL = tuple(Branch)
GREEDY = SamplingConfig(temperature=0.0)
RANDOM = SamplingConfig(semantic_top_k=8, temperature=3.0, top_p=1.0)
WIDTHS = {"text_width": 6, "prefix_width": 5, "acoustic_prefix_width": 3}
CAPACITY = Capacity(semantic=6, acoustic=8)


@functools.partial(jax.jit, static_argnames=("graph", "branches", "sampling", "capacity"))
def run(graph, state, batch, branches, sampling, capacity):
    return decode_ar(nnx.merge(graph, state), batch, branches=branches, sampling=sampling, capacity=capacity)


def decode(model, requests, *, branches=ALL, sampling=RANDOM, capacity=CAPACITY, **widths):
    batch = batch_requests(requests, branches, **{**WIDTHS, **widths})
    result = run(*nnx.split(model), batch, branches, sampling, capacity)
    return jax.tree.map(np.asarray, result)


def tokens_of(result, row):
    """Everything that a request was given, as plain values."""
    return (
        int(result.language[row]),
        result.semantic_tokens[row, : result.semantic_lengths[row]].tolist(),
        result.codes[row, : result.code_lengths[row]].tolist(),
        FinishReason(result.finish_reasons[row]),
    )


@pytest.fixture(scope="module")
def requests(vocabulary):
    """No prompt; a prompt and a language to predict; a prompt without its transcript."""
    texts = [[[3, 1], [7, 2], [1, 0]], [[9, 4], [2, 2], [5, 0], [11, 3], [1, 0]], [[6, 1], [1, 0]]]
    rng = np.random.default_rng(0)
    conditions = [("zh", [], 0), (None, [4, 0, 6], 3), ("en", [], 2)]
    return [
        ARRequest(
            text_tokens=np.array(text, np.int32),
            prompt=build_prompt(vocabulary, language, np.array(units, int), rng.integers(0, 9, (4, frames))),
            guidance=guidance,
            limits=LIMITS,
            seed=seed,
        )
        for seed, (text, (language, units, frames), guidance) in enumerate(
            zip(texts, conditions, [Guidance(), NONE, Guidance(text_on_semantic=2.5)], strict=True)
        )
    ]


def decode_seeds(model, request, count):
    """A request under many seeds, three at a time: one program serves all tests."""
    seeds = [dataclasses.replace(request, seed=seed) for seed in range(count)]
    results = [decode(model, seeds[start : start + 3]) for start in range(0, count, 3)]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *results)


def sure_classes(model, text, segments):
    """What is read surely counts whole."""
    read = model.read_style(text, segments)
    return None if read is None else surely_asked(read)


@functools.partial(jax.jit, static_argnames="graph")
def forward(graph, state, batch, drop_text, drop_semantic):
    model = nnx.merge(graph, state)
    sure = sure_classes(model, batch.text_tokens, batch.text_segment_ids)
    return model(dataclasses.replace(batch, text_attributes=sure), drop_text, drop_semantic)


def next_logits(model, text, tokens, part_ids, times=None, width=32):
    """Logits after a sequence, one row a branch, by the forward pass of training; `times` of text and tokens."""
    slots, length = len(text), len(text) + len(tokens)

    def padded(values, size=width):
        return jnp.asarray(np.pad(values, (0, size - len(values))), jnp.int32)[None]

    batch = PackedBatch(
        text_tokens=jnp.asarray(np.pad(text, ((0, 6 - slots), (0, 0))))[None],
        text_segment_ids=padded(np.ones(slots), 6),
        tokens=padded(np.r_[np.zeros(slots), tokens])[:, None],
        part_ids=padded(np.r_[np.zeros(slots), part_ids]),
        segment_ids=padded(np.ones(length)),
        positions=padded(np.arange(length)),
        text_index=padded(np.arange(slots)),
        clip_ids=jnp.zeros(1, jnp.int32),
        times=None if times is None else jnp.asarray(np.pad(times, (0, width - length)), jnp.float32)[None],
    )
    batch = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), batch)
    drop_text, drop_semantic = (jnp.tile(jnp.arange(3)[:, None] == branch, (1, width)) for branch in (1, 2))
    return np.asarray(forward(*nnx.split(model), batch, drop_text, drop_semantic)[:, length - 1], np.float64)


@functools.partial(jax.jit, static_argnames="graph")
def text_duration_logits(graph, state, text):
    model, segments = nnx.merge(graph, state), jnp.ones(text.shape[:2], jnp.int32)
    rows = model.embed_text(text, segments)
    return model.duration_logits(rows, text, model.read_style(text, segments, sure_classes(model, text, segments)))


def plain_durations(model, request):
    """Expected half frames of each text token, stretched to whole frames within the limits; and those frames."""
    logits = np.asarray(text_duration_logits(*nnx.split(model), jnp.asarray(request.text_tokens)[None])[0], np.float64)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    durations = (likely * np.arange(64)).sum(axis=1) / likely.sum(axis=1)
    limits = request.limits
    frames = min(max(round(durations.sum() / 2), limits.min_acoustic, 1), limits.max_acoustic)
    return durations * 2 * frames / durations.sum(), frames


def plain_times(durations, tokens, prompt_frames, eos1):
    """Text in the middle of its time; BOS, LANG and the frames; EOS1, the voice prompt, and the frames again."""
    ends = np.cumsum(durations)
    text = [(end - duration / 2) / 2 for end, duration in zip(ends, durations, strict=True)]
    first = tokens.index(eos1) if eos1 in tokens else len(tokens)
    semantic = [place - 1.5 for place in range(first)]
    acoustic = [place - 0.5 - prompt_frames for place in range(len(tokens) - first)]
    return np.array([*text, *semantic, *acoustic])


def plain_greedy(model, request):
    """The same rules over whole sequences: no cache, no batch, no bucket."""
    ids, guidance, limits = model.config.vocabulary, request.guidance, request.limits
    gamma, alpha, beta = guidance.text_on_semantic, guidance.text_on_acoustic, guidance.semantic_on_acoustic
    tokens, prompt = list(request.prompt.semantic_prefix), request.prompt.acoustic_prefix[0]
    aligned, durations = model.config.timing == "aligned", np.zeros(len(request.text_tokens))
    if aligned:
        durations, frames = plain_durations(model, request)
        limits = Limits(
            min_semantic=frames, max_semantic=frames, min_acoustic=frames, max_acoustic=frames, max_total=1000
        )

    def after(tokens, part_ids):
        times = plain_times(durations, tokens, len(prompt), ids.eos1) if aligned else None
        return next_logits(model, request.text_tokens, tokens, part_ids, times)

    if tokens[1] == 0:
        tokens[1] = 1 + int(np.argmax(after(tokens[:1], [SEMANTIC])[0][1:3]))
    reason, semantic, codes = FinishReason.STOP, [], []
    while tokens[-1] != ids.eos1:
        cond, text_free, _ = after(tokens, [SEMANTIC] * len(tokens))
        logits = text_free + gamma * (cond - text_free)
        choices = list(range(ids.semantic_offset, ids.acoustic_offset))
        choices += [ids.eos1] if len(semantic) >= limits.min_semantic else []
        choices = [ids.eos1] if aligned and len(semantic) == limits.min_semantic else choices
        best = max(choices, key=lambda token: logits[token])
        if len(semantic) == limits.max_semantic and best != ids.eos1:
            best, reason = ids.eos1, FinishReason.MAX_SEMANTIC
        tokens.append(best)
        semantic += [best - ids.semantic_offset] if best != ids.eos1 else []
    part_ids = [SEMANTIC] * len(tokens)
    tokens += list(prompt)
    while tokens[-1] != ids.eos2:
        part_ids += [ACOUSTIC] * (len(tokens) - len(part_ids))
        cond, text_free, semantic_free = after(tokens, part_ids)
        logits = semantic_free + beta * (text_free + alpha * (cond - text_free) - semantic_free)
        choices = list(range(ids.acoustic_offset, ids.bos)) + ([ids.eos2] if len(codes) >= limits.min_acoustic else [])
        choices = [ids.eos2] if aligned and len(codes) == limits.min_acoustic else choices
        best = max(choices, key=lambda token: logits[token])
        if len(codes) == limits.max_acoustic and best != ids.eos2:
            best, reason = ids.eos2, FinishReason.MAX_ACOUSTIC
        tokens.append(best)
        codes += [best - ids.acoustic_offset] if best != ids.eos2 else []
    return int(tokens[1]), semantic, codes, reason


def test_cached_loop_equals_a_plain_one_over_whole_sequences(ar_model, requests):
    result = decode(ar_model, requests, sampling=GREEDY)
    got = [tokens_of(result, row) for row in range(3)]
    assert got == [plain_greedy(ar_model, request) for request in requests]
    assert len({str(tokens) for tokens in got}) == 3
    assert not result.durations.any()


def test_guidance_of_one_in_all_branches_equals_the_condition_alone(ar_model, requests):
    plain = [dataclasses.replace(request, guidance=NONE) for request in requests]
    everything = decode(ar_model, plain, sampling=GREEDY)
    alone = decode(ar_model, plain, sampling=GREEDY, branches=(Branch.COND,))
    assert [tokens_of(everything, row) for row in range(3)] == [tokens_of(alone, row) for row in range(3)]


def test_same_seed_gives_same_tokens_and_another_seed_others(ar_model, requests):
    seeds = [dataclasses.replace(requests[1], seed=seed) for seed in (5, 6, 5)]
    result = decode(ar_model, seeds)
    assert tokens_of(result, 0) == tokens_of(result, 2)
    assert tokens_of(result, 0) != tokens_of(result, 1)


def test_neighbours_and_places_in_the_batch_change_nothing(ar_model, requests):
    first = decode(ar_model, requests)
    turned = decode(ar_model, [requests[2], requests[0], requests[1]])
    crowd = decode(ar_model, [requests[0], requests[1], requests[1]])
    assert [tokens_of(first, row) for row in (2, 0, 1)] == [tokens_of(turned, row) for row in range(3)]
    assert tokens_of(first, 0) == tokens_of(crowd, 0)


def test_buckets_change_nothing(ar_model, requests):
    narrow = decode(ar_model, requests)
    wide = decode(
        ar_model,
        requests,
        text_width=11,
        prefix_width=7,
        acoustic_prefix_width=6,
        capacity=Capacity(semantic=9, acoustic=12),
    )
    assert [tokens_of(narrow, row) for row in range(3)] == [tokens_of(wide, row) for row in range(3)]


@pytest.fixture(scope="module")
def aligned_requests(requests, vocabulary):
    """No prompt; a prompt of three frames and a language to predict; a prompt of two frames."""
    rng = np.random.default_rng(1)
    prompts = [
        build_prompt(vocabulary, language, np.zeros(0, int), rng.integers(0, 9, (4, frames)))
        for language, frames in (("zh", 0), (None, 3), ("en", 2))
    ]
    return [dataclasses.replace(request, prompt=prompt) for request, prompt in zip(requests, prompts, strict=True)]


decode_aligned = functools.partial(decode, capacity=Capacity(semantic=8, acoustic=8))


def test_an_aligned_loop_equals_a_plain_one_and_ends_where_the_text_does(aligned_model, aligned_requests):
    result = decode_aligned(aligned_model, aligned_requests, sampling=GREEDY)
    got = [tokens_of(result, row) for row in range(3)]
    assert got == [plain_greedy(aligned_model, request) for request in aligned_requests]
    for row, request in enumerate(aligned_requests):
        durations, frames = plain_durations(aligned_model, request)
        assert result.semantic_lengths[row] == result.code_lengths[row] == frames
        assert got[row][-1] == FinishReason.STOP
        np.testing.assert_allclose(result.durations[row, : len(durations)], durations, atol=1e-3)
        assert not result.durations[row, len(durations) :].any()
        assert result.durations[row].sum() == pytest.approx(2 * frames, abs=1e-3)
    assert len(set(result.code_lengths.tolist())) > 1
    assert any(LIMITS.min_acoustic < length < LIMITS.max_acoustic for length in result.code_lengths)


def test_a_loop_that_reads_style_equals_a_plain_one_and_hears_the_description(reading_model, aligned_requests):
    quotes = ([1, 2, 1], [1, 1, 2, 2, 1], [1, 1])
    asked = [
        dataclasses.replace(
            request, text_tokens=np.c_[request.text_tokens, np.ones((len(marks), 2), int), marks].astype(np.int32)
        )
        for request, marks in zip(aligned_requests, quotes, strict=True)
    ]
    got = decode_aligned(reading_model, asked, sampling=GREEDY)
    found = [tokens_of(got, row) for row in range(3)]
    assert found == [plain_greedy(reading_model, request) for request in asked]
    reading_model.style_reader.table[...] *= -1
    other = decode_aligned(reading_model, asked, sampling=GREEDY)
    reading_model.style_reader.table[...] *= -1
    assert [tokens_of(other, row) for row in range(3)] != found


def test_draws_change_tokens_and_not_how_long_they_last(aligned_model, aligned_requests):
    greedy = decode_aligned(aligned_model, aligned_requests, sampling=GREEDY)
    drawn = decode_aligned(aligned_model, aligned_requests)
    for name in ("semantic_lengths", "code_lengths", "durations", "finish_reasons"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(greedy, name))
    assert (drawn.codes != greedy.codes).any()


@pytest.mark.parametrize(("shortest", "longest"), [(6, 7), (1, 2), (7, 7)])
def test_limits_stretch_or_shorten_the_durations(aligned_model, aligned_requests, shortest, longest):
    """Those of the acoustic tokens; semantic tokens have no say."""
    limits = dataclasses.replace(LIMITS, min_acoustic=shortest, max_acoustic=longest, min_semantic=8, max_semantic=1)
    held = [dataclasses.replace(request, limits=limits) for request in aligned_requests]
    result = decode_aligned(aligned_model, held)
    wanted = [plain_durations(aligned_model, request) for request in held]
    assert result.code_lengths.tolist() == result.semantic_lengths.tolist() == [frames for _, frames in wanted]
    assert all(shortest <= frames <= longest for _, frames in wanted)
    for row, (durations, _) in enumerate(wanted):
        np.testing.assert_allclose(result.durations[row, : len(durations)], durations, atol=1e-3)
    assert {FinishReason(reason) for reason in result.finish_reasons} == {FinishReason.STOP}


def test_neighbours_and_buckets_change_nothing_in_aligned_requests(aligned_model, aligned_requests):
    first = decode_aligned(aligned_model, aligned_requests)
    turned = decode_aligned(aligned_model, [aligned_requests[row] for row in (2, 0, 1)])
    wide = decode(
        aligned_model,
        aligned_requests,
        text_width=11,
        prefix_width=7,
        acoustic_prefix_width=6,
        capacity=Capacity(semantic=9, acoustic=12),
    )
    assert [tokens_of(first, row) for row in (2, 0, 1)] == [tokens_of(turned, row) for row in range(3)]
    assert [tokens_of(first, row) for row in range(3)] == [tokens_of(wide, row) for row in range(3)]
    np.testing.assert_allclose(wide.durations[:, :6], first.durations, atol=1e-4)
    assert not wide.durations[:, 6:].any()


def test_lengths_stay_between_their_limits_and_cuts_are_told(ar_model, requests):
    request = dataclasses.replace(requests[2], guidance=NONE)
    free, held = (decode_seeds(ar_model, dataclasses.replace(request, limits=limits), 24) for limits in (FREE, LIMITS))
    # Left alone, the model ends some requests below the minimum and runs past the maximum in others.
    assert free.semantic_lengths.min() < 2
    assert free.semantic_lengths.max() > 5
    assert free.code_lengths.min() == 1
    assert free.code_lengths.max() > 7
    assert held.semantic_lengths.min() >= 2
    assert held.semantic_lengths.max() == 5
    assert held.code_lengths.min() >= 2
    assert held.code_lengths.max() == 7
    reasons = [FinishReason(reason) for reason in held.finish_reasons]
    for reason, semantic, codes in zip(reasons, held.semantic_lengths, held.code_lengths, strict=True):
        assert reason != FinishReason.MAX_ACOUSTIC or codes == 7
        assert reason != FinishReason.MAX_SEMANTIC or semantic == 5
    assert set(reasons) == {FinishReason.STOP, FinishReason.MAX_SEMANTIC, FinishReason.MAX_ACOUSTIC}


def test_only_units_and_codes_come_out(ar_model, requests):
    result = decode_seeds(ar_model, dataclasses.replace(requests[2], limits=FREE), 12)
    for values, lengths, size in (
        (result.semantic_tokens, result.semantic_lengths, 7),
        (result.codes, result.code_lengths, 9),
    ):
        inside = np.arange(values.shape[1]) < lengths[:, None]
        assert ((values >= 0) & (values < size)).all()
        assert (values[~inside] == 0).all()
        assert len(set(values[inside].tolist())) > size // 2


def test_the_total_counts_prompt_and_ends(ar_model, requests):
    limits = dataclasses.replace(FREE, min_semantic=2, max_semantic=2, min_acoustic=8, max_total=12)
    result = decode(ar_model, [dataclasses.replace(request, limits=limits) for request in requests])
    # BOS LANG [4 0 6] 2 ST EOS1 [3 AT] and one place left for EOS2, and so on.
    assert result.semantic_lengths.tolist() == [2, 2, 2]
    assert result.code_lengths.tolist() == [12 - 6, 12 - 12, 12 - 8]
    assert {FinishReason(reason) for reason in result.finish_reasons} == {FinishReason.MAX_TOTAL}


def test_a_language_that_is_asked_for_is_kept(ar_model, requests, vocabulary):
    prompts = [build_prompt(vocabulary, name, np.zeros(0, int), np.zeros((4, 0), int)) for name in ("en", "zh", None)]
    result = decode(ar_model, [dataclasses.replace(requests[0], prompt=prompt) for prompt in prompts])
    assert result.language[:2].tolist() == [1, 2]
    assert result.language[2] in (1, 2)


@pytest.mark.parametrize(("width", "name"), [("text_width", "text_tokens"), ("prefix_width", "prefix")])
def test_requests_that_do_not_fit_are_refused(requests, width, name):
    with pytest.raises(InputError, match=f"{name}: 5 tokens do not fit 4 slots"):
        batch_requests(requests, ALL, **{**WIDTHS, width: 4})
