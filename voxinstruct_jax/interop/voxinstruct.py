"""The release of VoxInstruct (`ar_1800k.pyt`, `nar_1800k.pyt`): its keys, and its two networks called in its layout.

The release pads every text to the same slots, which the language models see, reads text causally in the AR model, and
gives an empty row to the padding. `ReleaseAR` and `ReleaseNAR` take arrays in that layout, whatever our own batches are
like. Read `load_voxinstruct`.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.decoding.maskgit import fill_codebooks
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig, acoustic_mask, filter_logits, mask_logits, semantic_mask
from voxinstruct_jax.guidance import Guidance, acoustic_weights, mix_logits, semantic_weights
from voxinstruct_jax.interop.keys import (
    Weight,
    export_tensors,
    heads_in,
    heads_out,
    import_module,
    joined,
    merge_ties,
    same,
    stacked,
    transposed,
)
from voxinstruct_jax.interop.mt5 import MT5_TIES, mt5_prefix, mt5_weights
from voxinstruct_jax.interop.tensors import read_tensors
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, PackedBatch, Vocabulary

__all__ = [
    "Release",
    "ReleaseAR",
    "ReleaseConfig",
    "ReleaseNAR",
    "ar_weights",
    "export_voxinstruct",
    "load_voxinstruct",
    "nar_weights",
]

PEFT_PREFIX, PLAIN_PREFIX = "t5_model.base_model.model.", "t5_model."
ROTARY_BUFFER = re.compile(r".*\.rotary_emb\.inv_freq")

TextIds = Int[Array | np.ndarray, "batch text"]
TextMask = (
    Int[Array | np.ndarray, "batch text"] | Float[Array | np.ndarray, "batch text"] | Bool[np.ndarray, "batch text"]
)
Choice = bool | Bool[Array | np.ndarray, " batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """What the shapes in the release's files don't tell; the defaults are the release's.

    Raises:
        ConfigError: A count is below 1.
    """

    languages: tuple[str, ...] = ("en", "zh")
    """Names, in the order of their ids."""
    num_semantic: int = 500
    """Semantic units; the codes are what is left of the vocabulary."""
    num_heads: int = 16
    """Of both language models; that of mT5 shows in its relative bias."""
    lora_alpha: float = 16.0
    """Adapters count `lora_alpha / rank` times."""
    text_slots: int = 512
    """Every text fills so many, padding included."""

    def __post_init__(self) -> None:
        for name in ("num_semantic", "num_heads", "text_slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"release.{name}: {getattr(self, name)} must be at least 1")


class ReleaseAR:
    """The AR model of the release, called in its layout.

    Attributes:
        model: The module.
    """

    def __init__(self, model: ARModel, text_slots: int) -> None:
        self.model = model
        self.text_slots = text_slots
        self._parts = nnx.split(model)

    def logits(
        self,
        text_ids: TextIds,
        text_mask: TextMask,
        seqs: Int[Array | np.ndarray, "batch time"],
        segment_ids: Int[Array | np.ndarray, "batch time"],
        *,
        text_free: Choice = False,
        semantic_free: Choice = False,
    ) -> Float32[np.ndarray, "batch time vocab"]:
        """Predicts, at every place of the audio part, the id that follows.

        Args:
            text_ids: Of the SentencePiece model, `</s>` at the end, padding 0; filled up to `text_slots` if shorter.
            text_mask: 1 at real text ids.
            seqs: BOS LANG ST.. EOS1 AT.. EOS2, padding 0.
            segment_ids: 1 from BOS to EOS1, 2 behind it; rows at padding mean nothing.
            text_free: True, for all or for each row: the empty instruction.
            semantic_free: True, for all or for each row: the empty semantic part. In the release BOS, language and
                EOS1 go with it.

        Returns:
            Logits over the whole vocabulary, text slots left out.
        """
        tokens, segments = np.asarray(seqs), np.asarray(segment_ids)
        blank = _choice(semantic_free, len(tokens))[:, None] & (segments == SEMANTIC)
        batch = _batch(text_ids, text_mask, np.where(blank, 0, tokens)[:, None], segments, self.text_slots)
        drop = np.broadcast_to(_choice(text_free, len(tokens))[:, None], batch.part_ids.shape)
        return np.asarray(_ar_logits(*self._parts, batch, drop))[:, self.text_slots :]

    def probabilities(
        self,
        text_ids: Int[Array | np.ndarray, " text"],
        prefix: Int[Array | np.ndarray, " time"],
        sampled: Int[Array | np.ndarray, " step"],
        *,
        guidance: Guidance,
        sampling: SamplingConfig,
        rules: DecodingRules,
        prompt_codes: Int[Array | np.ndarray, " frame"] | None = None,
    ) -> Float32[np.ndarray, "step vocab"]:
        """Returns the distribution that each token of a finished run was drawn from.

        Args:
            text_ids: Of one text, padding left out.
            prefix: BOS LANG and the semantic ids of the voice prompt.
            sampled: All ids that were drawn, EOS1 and EOS2 among them.
            guidance: Strengths of the run.
            sampling: Filters and temperature of the run.
            rules: What each stage may draw, and what the branch without semantic tokens sees.
            prompt_codes: First-codebook ids of the voice prompt, which follow EOS1.
        """
        vocabulary = self.model.config.vocabulary
        prompt = np.zeros(0, int) if prompt_codes is None else np.asarray(prompt_codes)
        first, drawn = np.asarray(prefix), np.asarray(sampled)
        (ends,) = np.nonzero(drawn == vocabulary.eos1)
        stop = int(ends[0]) + 1 if len(ends) else len(drawn)
        sequence = np.concatenate([first, drawn[:stop], prompt, drawn[stop:]])
        segments = np.where(np.arange(len(sequence)) < len(first) + stop, SEMANTIC, ACOUSTIC)
        free = sequence.copy()
        free[(segments == SEMANTIC) if rules.blank_whole_semantic_part else vocabulary.is_semantic(sequence)] = 0
        rows = np.stack([sequence, sequence, free])
        ids = np.tile(np.asarray(text_ids), (3, 1))
        logits = self.logits(ids, ids != 0, rows, np.tile(segments, (3, 1)), text_free=np.array([False, True, False]))
        # The token at place i + 1 is drawn from what is predicted at place i.
        places = np.r_[np.arange(stop), np.arange(stop, len(drawn)) + len(prompt)] + len(first) - 1
        acoustic = np.arange(len(drawn)) >= stop
        weights = np.where(acoustic[:, None], acoustic_weights(guidance), semantic_weights(guidance))
        allowed = np.where(acoustic[:, None], acoustic_mask(vocabulary, rules), semantic_mask(vocabulary, rules))
        mixed = mix_logits(jnp.asarray(np.moveaxis(logits[:, places], 0, 1)), jnp.asarray(weights))
        top_k = np.where(acoustic, sampling.acoustic_top_k, sampling.semantic_top_k)
        masked = mask_logits(mixed, allowed)
        filtered = filter_logits(
            masked, top_k=jnp.asarray(top_k), top_p=sampling.top_p, temperature=sampling.temperature
        )
        return np.asarray(jax.nn.softmax(filtered))


class ReleaseNAR:
    """The NAR model of the release, called in its layout.

    Attributes:
        model: The module.
    """

    def __init__(self, model: NARModel, text_slots: int) -> None:
        self.model = model
        self.text_slots = text_slots
        self._parts = nnx.split(model)

    def logits(
        self,
        text_ids: TextIds,
        text_mask: TextMask,
        rows: Int[Array | np.ndarray, "batch codebook time"],
        segment_ids: Int[Array | np.ndarray, "batch time"],
        codebook: int | Int[Array | np.ndarray, " batch"],
        *,
        text_free: Choice = False,
    ) -> Float32[np.ndarray, "batch time head"]:
        """Predicts one codebook at every place of the audio part.

        Args:
            text_ids: As for the AR model.
            text_mask: As for the AR model.
            rows: Ids of all codebooks, 0 where they are hidden; what is to stay hidden is the caller's to blank.
            segment_ids: 1 from BOS to EOS1, 2 behind it, 0 at padding, which is not seen.
            codebook: The one to predict, from 1; one number, or one for each row.
            text_free: True, for all or for each row: the empty instruction.

        Returns:
            Logits over the codes, BOS, EOS1 and EOS2 (class = id - id of code 0), text slots left out.
        """
        tokens = np.asarray(rows)
        batch = _batch(text_ids, text_mask, tokens, np.asarray(segment_ids), self.text_slots)
        drop = np.broadcast_to(_choice(text_free, len(tokens))[:, None], batch.part_ids.shape)
        number = np.broadcast_to(np.asarray(codebook, np.int32), len(tokens))
        return np.asarray(_nar_logits(*self._parts, batch, number, drop))[:, self.text_slots :]

    def fill(
        self,
        text_ids: TextIds,
        text_mask: TextMask,
        rows: Int[Array | np.ndarray, "batch codebook time"],
        segment_ids: Int[Array | np.ndarray, "batch time"],
        *,
        num_steps: int,
        rules: DecodingRules,
    ) -> Int32[np.ndarray, "batch codebook time"]:
        """Fills the hidden ids (0) of segment 2, greedily, codebook after codebook.

        Args:
            text_ids: As for the AR model.
            text_mask: As for the AR model.
            rows: The first codebook is known throughout, the others for the voice prompt alone.
            segment_ids: As for `logits`.
            num_steps: Passes of each codebook.
            rules: Which classes may stand at a frame.
        """
        batch = _batch(text_ids, text_mask, np.asarray(rows), np.asarray(segment_ids), self.text_slots)
        steps = (num_steps,) * (self.model.config.vocabulary.num_codebooks - 1)
        return np.asarray(_nar_fill(*self._parts, batch, steps, rules))[..., self.text_slots :]


@dataclasses.dataclass(frozen=True)
class Release:
    """Both networks, and what their files hold beside them."""

    ar: ReleaseAR
    nar: ReleaseNAR
    config: ReleaseConfig
    unused: Mapping[str, Mapping[str, np.ndarray]]
    """Under "ar" and "nar": tensors of the files that no network reads, kept for the way back."""


def load_voxinstruct(
    ar: str | os.PathLike[str], nar: str | os.PathLike[str], config: ReleaseConfig | None = None
) -> Release:
    """Loads the two files of the release.

    Sizes come from the shapes; keys may be those of peft (`t5_model.base_model.model.`, with adapters) or plain
    (`t5_model.`, without). The language model's own token table, which both files hold and nothing reads, is set aside.

    Args:
        ar: `ar_1800k.pyt`, or the same state dict in another PyTorch file or in safetensors.
        nar: `nar_1800k.pyt`, likewise.
        config: What the shapes don't tell.

    Raises:
        InputError: A file is missing, damaged or hostile, or its keys and shapes do not fit (all are listed), or the
            two files do not belong together.
    """
    config = config or ReleaseConfig()
    tables = {name: _read(path) for name, path in (("ar", ar), ("nar", nar))}
    ar_config, nar_config = _model_configs(tables["ar"], tables["nar"], config, str(ar), str(nar))
    unused = {name: {key: table[key] for key in table if _is_unused(key, name)} for name, table in tables.items()}
    for name, source in (("ar", ar), ("nar", nar)):
        _check_unused(unused[name], ar_config, str(source))
    ar_model = import_module(
        lambda: ARModel(ar_config, rngs=nnx.Rngs(0)),
        ar_weights(ar_config),
        tables["ar"],
        source=str(ar),
        unused=unused["ar"],
    )
    nar_model = import_module(
        lambda: NARModel(nar_config, rngs=nnx.Rngs(0)),
        nar_weights(nar_config),
        tables["nar"],
        source=str(nar),
        unused=unused["nar"],
    )
    slots = config.text_slots
    return Release(ReleaseAR(ar_model, slots), ReleaseNAR(nar_model, slots), config, unused)


def export_voxinstruct(release: Release) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the state dicts of AR and NAR under the release's keys: the inverse of `load_voxinstruct`.

    The table that nothing reads is what was loaded, or zeros, since the release's program wants it to stand there.
    """
    found = []
    for name, model, weights in (
        ("ar", release.ar.model, ar_weights(release.ar.model.config)),
        ("nar", release.nar.model, nar_weights(release.nar.model.config)),
    ):
        tensors = export_tensors(model, weights)
        prefix = mt5_prefix(tensors)
        tensors |= {prefix + tie: tensors[prefix + key] for tie, key in MT5_TIES.items()}
        shape = (model.config.vocabulary.size, model.config.backbone.model_dim)
        found.append(tensors | {UNUSED_TABLES[name]: np.zeros(shape, np.float32)} | dict(release.unused.get(name, {})))
    return found[0], found[1]


UNUSED_TABLES = {"ar": "model.model.embed_tokens.weight", "nar": "model.embed_tokens.weight"}


def ar_weights(config: ARConfig) -> list[Weight]:
    """The table of keys of the AR model."""
    return [
        *_shared_weights(config, "model.model"),
        same("embed_tokens.weight", "token_embedding/table"),
        transposed("model.lm_head.weight", "head"),
    ]


def nar_weights(config: NARConfig) -> list[Weight]:
    """The table of keys of the NAR model."""
    codebooks = config.vocabulary.num_codebooks
    return [
        *_shared_weights(config, "model"),
        joined([f"all_embed_tokens.{i}.weight" for i in range(codebooks)], "token_embedding/table"),
        same("embed_res.weight", "codebook_embedding"),
        stacked([f"out_proj.{i}.weight" for i in range(codebooks - 1)], "heads"),
    ]


def _shared_weights(config: ARConfig | NARConfig, prefix: str) -> list[Weight]:
    text_prefix = PEFT_PREFIX if config.text_encoder.lora_rank else PLAIN_PREFIX
    heads, kv_heads = config.backbone.num_heads, config.backbone.num_kv_heads
    weights = [
        *mt5_weights(config.text_encoder, text_prefix, root="text/encoder/"),
        transposed("prompt_fc.weight", "text/projection/kernel"),
        same("prompt_fc.bias", "text/bias"),
        same("embed_segments.weight", "part_embedding"),
        same(f"{prefix}.norm.weight", "backbone/norm/weight"),
    ]
    for number in range(config.backbone.num_layers):
        layer, ours = f"{prefix}.layers.{number}", f"backbone/blocks/{number}"
        attention = f"{layer}.self_attn"
        weights += [
            heads_out(f"{attention}.q_proj.weight", f"{ours}/attention/query/kernel", heads),
            heads_out(f"{attention}.k_proj.weight", f"{ours}/attention/key/kernel", kv_heads),
            heads_out(f"{attention}.v_proj.weight", f"{ours}/attention/value/kernel", kv_heads),
            heads_in(f"{attention}.o_proj.weight", f"{ours}/attention/output/kernel", heads),
            same(f"{layer}.input_layernorm.weight", f"{ours}/attention_norm/weight"),
            same(f"{layer}.post_attention_layernorm.weight", f"{ours}/ffn_norm/weight"),
            *(transposed(f"{layer}.mlp.{name}_proj.weight", f"{ours}/ffn/{name}/kernel") for name in _MLP),
        ]
    return weights


_MLP = ("gate", "up", "down")


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    tensors = read_tensors(Path(path))
    prefix = mt5_prefix(tensors)
    return merge_ties(tensors, {prefix + tie: prefix + key for tie, key in MT5_TIES.items()}, str(path))


def _is_unused(key: str, name: str) -> bool:
    return key == UNUSED_TABLES[name] or ROTARY_BUFFER.fullmatch(key) is not None


def _check_unused(unused: Mapping[str, np.ndarray], config: ARConfig, source: str) -> None:
    shape = (config.vocabulary.size, config.backbone.model_dim)
    for key in set(UNUSED_TABLES.values()) & unused.keys():
        if unused[key].shape != shape:
            raise InputError(f"{source}: weights do not fit; {key} has the shape {unused[key].shape}, not {shape}")


def _model_configs(
    ar: Mapping[str, np.ndarray], nar: Mapping[str, np.ndarray], config: ReleaseConfig, ar_source: str, nar_source: str
) -> tuple[ARConfig, NARConfig]:
    """Reads all sizes off the shapes."""
    size, dim = _shape(ar, "embed_tokens.weight", ar_source)
    head, _ = _shape(nar, "out_proj.0.weight", nar_source)
    codebooks = _count(nar, r"all_embed_tokens\.(\d+)\.weight")
    vocabulary = Vocabulary(
        languages=config.languages,
        num_semantic=config.num_semantic,
        codebook_size=max(head - 3, 1),
        num_codebooks=max(codebooks, 2),
    )
    if vocabulary.size != size:
        raise InputError(
            f"{ar_source}: has {size} ids, but {len(config.languages)} languages, {config.num_semantic} semantic units "
            f"and {head - 3} codes (of {nar_source}) make {vocabulary.size}; give the ReleaseConfig that fits"
        )
    return (
        ARConfig(
            vocabulary=vocabulary,
            backbone=_backbone(ar, "model.model", dim, config, ar_source),
            text_encoder=_text_encoder(ar, config, ar_source),
            text_attention="causal",
        ),
        NARConfig(
            vocabulary=vocabulary,
            backbone=_backbone(nar, "model", dim, config, nar_source),
            text_encoder=_text_encoder(nar, config, nar_source),
        ),
    )


def _backbone(
    tensors: Mapping[str, np.ndarray], prefix: str, dim: int, config: ReleaseConfig, source: str
) -> LlamaConfig:
    queries, _ = _shape(tensors, f"{prefix}.layers.0.self_attn.q_proj.weight", source)
    keys, _ = _shape(tensors, f"{prefix}.layers.0.self_attn.k_proj.weight", source)
    head_dim, rest = divmod(queries, config.num_heads)
    if rest or not head_dim or keys % head_dim:
        raise InputError(f"{source}: projections of {queries} and {keys} do not divide into {config.num_heads} heads")
    return LlamaConfig(
        num_layers=_count(tensors, rf"{re.escape(prefix)}\.layers\.(\d+)\..*"),
        model_dim=dim,
        num_heads=config.num_heads,
        num_kv_heads=keys // head_dim,
        head_dim=head_dim,
        ffn_dim=_shape(tensors, f"{prefix}.layers.0.mlp.gate_proj.weight", source)[0],
    )


def _text_encoder(tensors: Mapping[str, np.ndarray], config: ReleaseConfig, source: str) -> TextEncoderConfig:
    prefix = mt5_prefix(tensors)
    attention = f"{prefix}encoder.block.0.layer.0.SelfAttention"
    adapter = tensors.get(f"{attention}.q.lora_A.default.weight")
    rows, dim = _shape(tensors, f"{prefix}shared.weight", source)
    buckets, heads = _shape(tensors, f"{attention}.relative_attention_bias.weight", source)
    return TextEncoderConfig(
        channel_sizes=(rows,),
        model_dim=dim,
        num_layers=_count(tensors, rf"{re.escape(prefix)}encoder\.block\.(\d+)\..*"),
        num_heads=heads,
        head_dim=_shape(tensors, f"{attention}.k.weight", source)[0] // heads,
        ffn_dim=_shape(tensors, f"{prefix}encoder.block.0.layer.1.DenseReluDense.wi_0.weight", source)[0],
        num_buckets=buckets,
        lora_rank=0 if adapter is None else len(adapter),
        lora_alpha=config.lora_alpha,
    )


def _shape(tensors: Mapping[str, np.ndarray], key: str, source: str) -> tuple[int, int]:
    if key not in tensors or tensors[key].ndim != 2:
        raise InputError(
            f"{source}: weights do not fit; {key} is missing or no matrix, so it is no file of VoxInstruct"
        )
    return tensors[key].shape[0], tensors[key].shape[1]


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    """How many numbers the keys of a list run through."""
    numbers = [int(match[1]) for key in tensors if (match := re.fullmatch(pattern, key))]
    return max(numbers, default=-1) + 1


def _choice(value: Choice, rows: int) -> Bool[np.ndarray, " batch"]:
    return np.broadcast_to(np.asarray(value, bool), rows)


def _batch(
    text_ids: TextIds,
    text_mask: TextMask,
    tokens: Int[np.ndarray, "batch codebook time"],
    segments: Int[np.ndarray, "batch time"],
    slots: int,
) -> PackedBatch:
    """All text slots, then the audio part; padding of the text is part of the clip, that of the audio is not."""
    rows, width = np.shape(text_ids)
    if width > slots:
        raise InputError(f"the text has {width} ids, but there are {slots} slots; cut it as the tokenizer does")
    spare = ((0, 0), (0, slots - width))
    audio = ((0, 0), (slots, 0))
    places = np.tile(np.arange(slots + tokens.shape[-1], dtype=np.int32), (rows, 1))
    arrays: dict[str, Any] = {
        "text_tokens": np.pad(np.asarray(text_ids, np.int32), spare)[..., None],
        "text_segment_ids": np.pad((np.asarray(text_mask) > 0).astype(np.int32), spare),
        "tokens": np.pad(tokens.astype(np.int32), ((0, 0), *audio)),
        "part_ids": np.pad(segments.astype(np.int32), audio),
        "segment_ids": np.pad((segments > 0).astype(np.int32), audio, constant_values=1),
        "positions": places,
        "text_index": np.minimum(places, slots - 1),
        "clip_ids": np.arange(rows, dtype=np.int32),
    }
    return PackedBatch(**arrays)


@functools.partial(jax.jit, static_argnums=0)
def _ar_logits(graph: Any, state: Any, batch: PackedBatch, drop_text: Any) -> Any:
    return nnx.merge(graph, state)(batch, drop_text, jnp.zeros_like(drop_text))


@functools.partial(jax.jit, static_argnums=0)
def _nar_logits(graph: Any, state: Any, batch: PackedBatch, codebook: Any, drop_text: Any) -> Any:
    return nnx.merge(graph, state)(batch, codebook, drop_text)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _nar_fill(graph: Any, state: Any, batch: PackedBatch, num_steps: tuple[int, ...], rules: DecodingRules) -> Any:
    keys = jnp.broadcast_to(jax.random.key(0), batch.clip_ids.shape)  # not read: the release is greedy
    return fill_codebooks(nnx.merge(graph, state), batch, keys, num_steps=num_steps, rules=rules)
