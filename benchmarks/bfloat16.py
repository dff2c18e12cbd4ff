"""How far bfloat16 is from float32: logits and likeliest tokens of the AR and the NAR model, both fed the same tokens.

Run: uv run python benchmarks/bfloat16.py [--paper] [--tokens N]
The embedded voice reads tokens of its own (spoken greedily in float32); `--paper` takes models of the paper's size with
random weights and tokens instead, whose logits are nearly level: their likeliest tokens part sooner than a trained
model's. A drift is max|a - b| / max|b| over the logits of all places.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from full_size import draw

import voxinstruct_jax as vox
from voxinstruct_jax.layers.dense import cast_kernels
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.vocabulary import TEXT, PackedBatch, audio_times, build_layout, text_times

INSTRUCTIONS = (
    'A woman says slowly: "The door is open."',
    "一位男士说：“今天天气很好。”",
    'He shouts: "Come back at nine!"',
)
TEXT_SLOTS = 64


def main() -> int:
    """Prints the drift of both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paper", action="store_true", help="the paper's size, random weights")
    parser.add_argument("--tokens", type=int, default=96, help="audio slots with --paper (default: 96)")
    options = parser.parse_args()
    found: dict[str, list[np.ndarray]] = {}
    for name, pair, batch in paper(options.tokens) if options.paper else embedded():
        found.setdefault(name, []).append(compare(name, pair, batch))
    for name, rows in found.items():
        drift, agree, places = np.array(rows).T
        share = (agree * places).sum() / places.sum()
        print(f"{name}: drift of logits {drift.max():.4f}, likeliest equal at {share:.3f} of {places.sum():.0f} places")
    return 0


def compare(name: str, pair: list[nnx.Module], batch: PackedBatch) -> np.ndarray:
    """Drift of the first model, share of places with the same likeliest token, and places."""
    logits = [np.asarray(forward(*nnx.split(model), name, batch), np.float32) for model in pair]
    audio = (np.asarray(batch.part_ids) != TEXT) & (np.asarray(batch.segment_ids) > 0)
    a, b = (values[audio] for values in logits)
    return np.array([np.abs(a - b).max() / np.abs(b).max(), (a.argmax(-1) == b.argmax(-1)).mean(), len(a)])


@functools.partial(jax.jit, static_argnums=(0, 2))
def forward(graph: nnx.GraphDef, state: nnx.State, name: str, batch: PackedBatch) -> jax.Array:
    """All logits; the NAR model's are those of its second codebook."""
    model, nowhere = nnx.merge(graph, state), jnp.zeros(batch.part_ids.shape, bool)
    return model(batch, nowhere, nowhere) if name == "AR" else model(batch, jnp.array([1]), nowhere)


def embedded() -> Iterator[tuple[str, list[nnx.Module], PackedBatch]]:
    """The embedded voice, and what it says."""
    voice = vox.load()
    voices = vox.load(dtype="bfloat16"), voice
    pairs = {
        name: [nnx.merge(part.graph, part.state) for part in (getattr(each, name.lower()) for each in voices)]
        for name in ("AR", "NAR")
    }
    sampling = dataclasses.replace(voice.config.sampling, temperature=0.0, repetition_ratio=1.0)
    for instruction in INSTRUCTIONS:
        audio = voice.synthesize(instruction, sampling=sampling)
        text = voice.tokenizer.encode(instruction)
        frames = audio.acoustic.shape[1]
        durations = np.full(len(text), 2 * frames / len(text), np.float32)
        times = np.concatenate([text_times(durations), audio_times(len(audio.semantic), frames, 0)])
        layout = build_layout(voice.ar.config.vocabulary, audio.language, audio.semantic, audio.acoustic)
        for name, pair in pairs.items():
            tokens = layout.tokens.copy()
            if name == "NAR":
                tokens[1:, -frames - 1 :] = 0
            yield name, pair, one_clip(text, tokens, layout.part_ids, times)


def paper(slots: int) -> Iterator[tuple[str, list[nnx.Module], PackedBatch]]:
    """Networks of the paper's size behind a small text encoder, on tokens by chance."""
    random, text_encoder = np.random.default_rng(0), TextEncoderConfig.tiny((40,))
    for name, config, model_class in (("AR", ARConfig.paper(), ARModel), ("NAR", NARConfig.paper(), NARModel)):
        small = dataclasses.replace(config, text_encoder=text_encoder)
        vocabulary = config.vocabulary
        units = random.integers(0, vocabulary.num_semantic, slots // 3)
        codes = random.integers(0, vocabulary.codebook_size, (vocabulary.num_codebooks, slots - slots // 3))
        layout = build_layout(vocabulary, "en", units, codes)
        text = random.integers(1, 40, (TEXT_SLOTS, 1)).astype(np.int32)
        pair = [
            draw(lambda config=config, model_class=model_class: model_class(config, rngs=nnx.Rngs(0)), seed=0)
            for config in (dataclasses.replace(small, dtype="bfloat16"), small)
        ]
        cast_kernels(pair[0], "bfloat16")
        yield name, pair, one_clip(text, layout.tokens, layout.part_ids, None)


def one_clip(text: np.ndarray, tokens: np.ndarray, part_ids: np.ndarray, times: np.ndarray | None) -> PackedBatch:
    """A row without padding."""
    slots, length = np.arange(len(text) + tokens.shape[1], dtype=np.int32), len(text)
    return PackedBatch(
        text_tokens=jnp.asarray(text)[None],
        text_segment_ids=jnp.ones((1, length), jnp.int32),
        tokens=jnp.asarray(np.pad(tokens, ((0, 0), (length, 0))))[None],
        part_ids=jnp.asarray(np.pad(part_ids, (length, 0), constant_values=TEXT), jnp.int32)[None],
        segment_ids=jnp.ones((1, len(slots)), jnp.int32),
        positions=jnp.asarray(slots)[None],
        text_index=jnp.asarray(np.where(slots < length, slots, 0))[None],
        clip_ids=jnp.zeros(1, jnp.int32),
        times=None if times is None else jnp.asarray(times, jnp.float32)[None],
    )


if __name__ == "__main__":
    sys.exit(main())
