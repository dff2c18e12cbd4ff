"""Our networks against stored outputs of the original programs, with their weights and their way with text padding.

The original keeps 12 text slots here, padding included: it is attended to (its rows are zero), and text is causal in
the AR model. Both say so in the batch and the config; the code under test is that of our own models.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.interop.keys import import_module, merge_ties
from voxinstruct_jax.interop.mt5 import MT5_TIES
from voxinstruct_jax.interop.voxinstruct import ar_weights, nar_weights
from voxinstruct_jax.layers.parameter import FrozenParam
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.conditioning import place_text
from voxinstruct_jax.models.llama import LlamaConfig, init_cache
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.vocabulary import SEMANTIC, TEXT, PackedBatch, Vocabulary

VOCABULARY = Vocabulary(num_semantic=20, codebook_size=32, num_codebooks=8)
BACKBONE = LlamaConfig(num_layers=2, model_dim=64, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=128)
TEXT_ENCODER = TextEncoderConfig(
    channel_sizes=(40,),
    model_dim=32,
    num_layers=2,
    num_heads=4,
    head_dim=8,
    ffn_dim=64,
    lora_rank=4,
    lora_alpha=8.0,
)
SIZES = {"vocabulary": VOCABULARY, "backbone": BACKBONE, "text_encoder": TEXT_ENCODER}
TEXT_PREFIX = "t5_model.base_model.model."
NUM_TEXT = 12
LIMIT = 1e-4


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "voxinstruct_tiny.npz") as arrays:
        return dict(arrays)


def heads_out(weight, heads, head_dim):
    """torch (heads x head_dim, in) → (in, heads, head_dim)."""
    return weight.T.reshape(-1, heads, head_dim)


def load(model_class, config, weights, golden, name):
    """A model with the original's weights, split; the table of keys is the package's own."""
    tensors = {key.removeprefix(f"{name}/w/"): value for key, value in golden.items() if key.startswith(f"{name}/w/")}
    tensors = merge_ties(tensors, {f"{TEXT_PREFIX}{tie}": f"{TEXT_PREFIX}{key}" for tie, key in MT5_TIES.items()}, name)
    unused = {"ar": ["model.model.embed_tokens.weight"], "nar": ["model.embed_tokens.weight"]}[name]
    return nnx.split(
        import_module(lambda: model_class(config, rngs=nnx.Rngs(0)), weights, tensors, source=name, unused=unused)
    )


@pytest.fixture(scope="module")
def ar(golden):
    config = ARConfig(**SIZES, text_attention="causal")
    return load(ARModel, config, ar_weights(config), golden, "ar")


@pytest.fixture(scope="module")
def nar(golden):
    config = NARConfig(**SIZES)
    return load(NARModel, config, nar_weights(config), golden, "nar")


def faithful_batch(golden, tokens, part_ids, valid, rows=(0, 1)):
    """All 12 text slots, then audio; text padding is part of the clip, audio padding is not."""
    rows = np.array(rows)
    num_rows, time = len(rows), NUM_TEXT + tokens.shape[-1]
    text_slots = np.zeros((num_rows, NUM_TEXT), np.int32)
    return PackedBatch(
        text_tokens=jnp.asarray(golden["data/text_ids"][rows, :, None]),
        text_segment_ids=jnp.asarray(golden["data/text_attn_mask"][rows], jnp.int32),
        tokens=jnp.asarray(np.concatenate([np.zeros((*tokens.shape[:2], NUM_TEXT), np.int32), tokens], axis=-1)),
        part_ids=jnp.asarray(np.concatenate([text_slots, part_ids], axis=1)),
        segment_ids=jnp.asarray(np.concatenate([text_slots + 1, valid.astype(np.int32)], axis=1)),
        positions=jnp.tile(jnp.arange(time), (num_rows, 1)),
        text_index=jnp.asarray(np.minimum(np.tile(np.arange(time), (num_rows, 1)), NUM_TEXT - 1)),
        clip_ids=jnp.arange(num_rows),
    )


@pytest.fixture(scope="module")
def ar_batch(golden):
    return faithful_batch(
        golden, golden["data/seqs"][:, None], golden["data/segment_ids"], golden["data/seq_attn_mask"]
    )


def blank_semantic_part(batch):
    """The original's empty semantic tokens: BOS, language and EOS1 go, too."""
    blank = (batch.part_ids == SEMANTIC)[:, None]
    return dataclasses.replace(batch, tokens=jnp.where(blank, 0, batch.tokens))


@functools.partial(jax.jit, static_argnums=0)
def run_ar(graph, state, batch, drop_text):
    drop_text = jnp.broadcast_to(drop_text, batch.segment_ids.shape)
    return nnx.merge(graph, state)(batch, drop_text, jnp.zeros_like(drop_text))


@pytest.mark.parametrize("model", ["ar", "nar"])
def test_text_encoder_with_adapters(golden, request, model):
    graph, state = request.getfixturevalue(model)
    valid = golden["data/text_attn_mask"].astype(bool)
    encode = jax.jit(lambda state, ids, mask: nnx.merge(graph, state).text.encoder(ids, mask))
    encoded = encode(state, golden["data/text_ids"][..., None], valid.astype(np.int32))
    np.testing.assert_allclose(np.asarray(encoded)[valid], golden[f"{model}/t5_last_hidden"][valid], atol=LIMIT)


@pytest.mark.parametrize("branch", ["cond", "text_free", "st_free"])
def test_ar_logits(golden, ar, ar_batch, branch):
    batch = blank_semantic_part(ar_batch) if branch == "st_free" else ar_batch
    logits = np.asarray(run_ar(*ar, batch, branch == "text_free"))[:, NUM_TEXT:]
    valid = golden["data/seq_attn_mask"].astype(bool)
    np.testing.assert_allclose(logits[valid], golden[f"ar/{branch}/logits"][valid], atol=LIMIT)


def test_ar_gradients(golden, ar, ar_batch):
    """Loss and gradients by the original's names; the frozen encoder has none, row 0 of the token table is 0."""
    graph, state = ar
    _, trained, rest = nnx.split(nnx.merge(graph, state), nnx.Param, ...)
    targets = jnp.asarray(golden["data/seqs"][:, 1:])
    counted = jnp.asarray(golden["data/seq_attn_mask"][:, 1:])

    def loss(trained):
        logits = run_ar(graph, nnx.merge_state(trained, rest), ar_batch, False)[:, NUM_TEXT:-1]
        likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -(likelihood * counted).sum() / counted.sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(trained)
    assert float(value) == pytest.approx(float(golden["ar/cond/loss"]), abs=1e-5)
    ours = {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(gradient)}
    theirs = {key[len("ar/cond/grad/") :]: v for key, v in golden.items() if key.startswith("ar/cond/grad/")}
    t5 = "t5_model.base_model.model.encoder.block"
    expected = {
        "text/encoder/blocks/0/attention/value/down": theirs[f"{t5}.0.layer.0.SelfAttention.v.lora_A.default.weight"].T,
        "text/encoder/blocks/1/attention/query/up": heads_out(
            theirs[f"{t5}.1.layer.0.SelfAttention.q.lora_B.default.weight"], 4, 8
        ),
        "backbone/blocks/0/attention/query/kernel": heads_out(
            theirs["model.model.layers.0.self_attn.q_proj.weight"], 4, 16
        ),
        "backbone/blocks/1/attention_norm/weight": theirs["model.model.layers.1.input_layernorm.weight"],
        "token_embedding/table": theirs["embed_tokens.weight"],
        "part_embedding": theirs["embed_segments.weight"],
        "text/projection/kernel": theirs["prompt_fc.weight"].T,
        "text/bias": theirs["prompt_fc.bias"],
        "head": theirs["model.lm_head.weight"].T,
    }
    for path, array in expected.items():
        np.testing.assert_allclose(ours[path], array, atol=1e-5, err_msg=path)
    assert not ours["token_embedding/table"][0].any()
    norm = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in ours.values()))
    assert norm == pytest.approx(float(golden["ar/cond/grad_l2_all"]), rel=1e-5)
    assert isinstance(nnx.merge(graph, state).text.encoder.embedding.table, FrozenParam)


@pytest.mark.parametrize("branch", ["base", "text_free", "st_free"])
def test_ar_cached_decoding(golden, ar, ar_batch, branch):
    """A prefill up to the first prefix, then the tokens between one prefix and the next."""
    graph, state = ar
    row = int(golden["ar/decode/row"])
    batch = blank_semantic_part(ar_batch) if branch == "st_free" else ar_batch
    slots = NUM_TEXT + 16

    @jax.jit
    def embed(state):
        module = nnx.merge(graph, state)
        drop = jnp.full(batch.segment_ids.shape, branch == "text_free")
        text_rows = module.embed_text(batch.text_tokens, batch.text_segment_ids)
        x = module.embed(batch.tokens[:, 0], batch.part_ids, place_text(text_rows, batch, drop))
        return x[row : row + 1]

    x, cache, start, logits = embed(state), init_cache(BACKBONE, 1, slots), 0, []
    for end in NUM_TEXT + golden["ar/decode/prefix_lengths"]:
        positions = jnp.arange(start, end)[None]
        mask = jnp.arange(slots)[None, None, :] <= positions[..., None]
        hidden, cache = decode_step(graph, state, x[:, start:end], positions, cache, mask)
        logits.append(run_head(graph, state, hidden[0, -1]))
        start = int(end)
    np.testing.assert_allclose(np.stack(logits), golden[f"ar/decode_{branch}/logits"], atol=LIMIT)


@functools.partial(jax.jit, static_argnums=0)
def decode_step(graph, state, x, positions, cache, mask):
    return nnx.merge(graph, state).decode(x, positions, cache, positions[0, 0], mask)


@functools.partial(jax.jit, static_argnums=0)
def run_head(graph, state, hidden):
    return nnx.merge(graph, state).logits(hidden)


@functools.partial(jax.jit, static_argnums=0)
def run_nar(graph, state, batch, codebook):
    return nnx.merge(graph, state)(batch, codebook, jnp.zeros(batch.segment_ids.shape, bool))


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_nar_training_logits(golden, nar, draw):
    """The original hides the whole of the predicted codebook beyond the prompt, and all codebooks above it."""
    codebook = golden[f"nar/train{draw}/layer_index"]
    tokens = np.moveaxis(golden["data/full_seqs"], -1, 1)
    below = np.arange(8)[None, :, None] < codebook[:, None, None]
    visible = np.where(below | golden[f"nar/train{draw}/prompt_mask"][:, None], tokens, 0)
    valid = golden["data/seq_attn_mask"].astype(bool)
    batch = faithful_batch(golden, visible, golden["data/segment_ids"], valid)
    logits = np.asarray(run_nar(*nar, batch, jnp.asarray(codebook)))[:, NUM_TEXT:]
    np.testing.assert_allclose(logits[valid], golden[f"nar/train{draw}/logits"][valid], atol=LIMIT)


@pytest.mark.parametrize("case", [0, 1])
def test_nar_decoding_logits(golden, nar, case):
    """The first of the steps of each of the 7 codebooks, as 7 rows of one batch."""
    recorded = {key.split("/")[-1]: v for key, v in golden.items() if key.startswith(f"nar/predict{case}/")}
    num_steps, row = int(recorded["iter_step"]), int(recorded["row"])
    tokens = np.concatenate([recorded["x_in"], recorded["x_after_each_codebook"][:-1]])
    part_ids = np.tile(recorded["segment_ids"], (7, 1))
    batch = faithful_batch(golden, tokens, part_ids, part_ids != TEXT, rows=(row,) * 7)
    logits = np.asarray(run_nar(*nar, batch, jnp.arange(1, 8)))[:, NUM_TEXT:]
    np.testing.assert_allclose(logits, recorded["logits_all_calls"][::num_steps], atol=LIMIT)
