"""The paper-size system beside a PyTorch program of the same shapes: one run, turn by turn, ratios printed.

Run: uv run python benchmarks/reference.py --torch-python PATH_TO_A_PYTHON_WITH_TORCH
     (it needs torch and transformers, for Vocos also vocos and encodec; `--small` is a quick try of the program itself)
Bound by: AR steps, reading the weights once a pass: the release runs two passes a semantic token and three an acoustic
one, here the branches are rows of one. The rest is bound by arithmetic.

Weights are random and the networks whole, but for mT5, which runs once a request. An AR step is measured over a chunk
of steps from a full cache, with branches mixed and the best token taken; both sides attend to the same context. Here
all three branches are rows of every step, so that both stages cost the same.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.llama import KVCache, LlamaConfig, init_cache
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.vocabulary import SEMANTIC, TEXT, PackedBatch, Vocabulary

SEMANTIC_A_SECOND, ACOUSTIC_A_SECOND = 30, 75  # HuBERT units after de-duplication (a share of .6 left), EnCodec frames
NAR_PASSES = 7 * 8


def main() -> int:
    """Times every part on both sides in turn and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", type=Path, required=True, help="interpreter of the PyTorch side")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=7, help="turns of each part (default: 7)")
    parser.add_argument("--seconds", type=int, default=5, help="length of the speech (default: 5)")
    parser.add_argument("--steps", type=int, default=16, help="AR steps a call (default: 16)")
    parser.add_argument("--small", action="store_true", help="tiny networks: tries the program, measures nothing")
    options = parser.parse_args()
    sizes = choose_sizes(options)
    found = dict(measure(options, sizes))
    if options.small:
        print("tiny networks: these figures mean nothing")
    elif found.keys() == PARTS.keys():
        summarise(found, sizes)
    return 0


def choose_sizes(options: argparse.Namespace) -> dict[str, int]:
    """What both sides are built from."""
    backbone = LlamaConfig.tiny() if options.small else LlamaConfig.paper()
    backbone = dataclasses.replace(backbone, num_kv_heads=backbone.num_heads)
    vocabulary = Vocabulary()
    text_slots = 512
    semantic = 3 + SEMANTIC_A_SECOND * options.seconds
    return {
        "threads": os.cpu_count() or 1,
        "small": int(options.small),
        "seconds": options.seconds,
        "steps": options.steps,
        "num_layers": backbone.num_layers,
        "model_dim": backbone.model_dim,
        "num_heads": backbone.num_heads,
        "ffn_dim": backbone.ffn_dim,
        "vocab": vocabulary.size,
        "codebook_size": vocabulary.codebook_size,
        "text_slots": text_slots,
        "context": text_slots + semantic,
        "nar_width": semantic + ACOUSTIC_A_SECOND * options.seconds + 1,
    }


def measure(options: argparse.Namespace, sizes: dict[str, int]) -> Iterable[tuple[str, tuple[float, float]]]:
    """Gives the median seconds of a part, ours and PyTorch's; the two take turns."""
    script = Path(__file__).with_name("reference_torch.py")
    command = [str(options.torch_python), str(script), json.dumps(sizes)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=_plain_environment()) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for name in options.parts:
            call = PARTS[name](sizes)
            call()  # compiles
            ours, theirs = [], []
            for _ in range(options.repeats):
                print(name, file=worker.stdin, flush=True)
                theirs.append(float(worker.stdout.readline()))
                start = time.perf_counter()
                call()
                ours.append(time.perf_counter() - start)
            scale = 1000 / (sizes["steps"] if name.startswith("AR") else 1)
            first, second = statistics.median(ours) * scale, statistics.median(theirs) * scale
            spread = ", ".join(f"{min(times) * scale:.1f} to {max(times) * scale:.1f}" for times in (ours, theirs))
            print(f"{name}: {first:.1f} ms here, {second:.1f} ms in PyTorch ({spread}); ratio {second / first:.2f}")
            yield name, (first / 1000, second / 1000)
        worker.stdin.close()


def summarise(found: dict[str, tuple[float, float]], sizes: dict[str, int]) -> None:
    """Adds the parts up to a clip, as the release runs them: eight NAR passes a codebook; prefills and mT5 left out."""
    counts = {
        "AR step, semantic": SEMANTIC_A_SECOND * sizes["seconds"],
        "AR step, acoustic": ACOUSTIC_A_SECOND * sizes["seconds"],
        "NAR pass": NAR_PASSES,
        "Vocos": 1,
    }
    here, there = (sum(count * found[name][side] for name, count in counts.items()) for side in (0, 1))
    print(
        f"{sizes['seconds']} s of speech from these parts: {here:.1f} s here, {there:.1f} s; ratio {there / here:.2f}"
    )


def make_ar(sizes: dict[str, int]) -> Callable[[], None]:
    """A chunk of AR steps; three branches are rows of one pass."""
    config = ARConfig(backbone=_backbone(sizes), text_encoder=TextEncoderConfig.tiny((8,)))
    graph, state = nnx.split(ARModel(config, rngs=nnx.Rngs(0)))
    context, rows, steps = sizes["context"], 3, sizes["steps"]
    cache = init_cache(config.backbone, rows, context + steps)
    weights, slots = jnp.array([4.5, -3.0, -0.5]), jnp.arange(context + steps)
    no_text = jnp.zeros((rows, 1, config.backbone.model_dim))

    @functools.partial(jax.jit, donate_argnums=1)
    def run(state: nnx.State, cache: KVCache, token: jax.Array) -> tuple[KVCache, jax.Array]:
        model = nnx.merge(graph, state)

        def step(number: jax.Array, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
            cache, token = carry
            x = model.embed(jnp.full((rows, 1), token), jnp.full((rows, 1), SEMANTIC), no_text)
            slot = context + number
            mask = jnp.broadcast_to(slots <= slot, (rows, 1, len(slots)))
            hidden, cache = model.decode(x, jnp.full((rows, 1), slot), cache, slot, mask)
            return cache, jnp.argmax(weights @ model.logits(hidden[:, 0])).astype(jnp.int32)

        return jax.lax.fori_loop(0, steps, step, (cache, token))

    def call() -> None:
        nonlocal cache
        cache, token = run(state, cache, jnp.int32(5))
        token.block_until_ready()

    return call


def make_nar(sizes: dict[str, int]) -> Callable[[], None]:
    """One pass of the NAR model."""
    config = NARConfig(backbone=_backbone(sizes), text_encoder=TextEncoderConfig.tiny((8,)))
    graph, state = nnx.split(NARModel(config, rngs=nnx.Rngs(0)))
    width, text_slots = sizes["text_slots"] + sizes["nar_width"], sizes["text_slots"]
    parts = np.where(np.arange(width) < text_slots, TEXT, SEMANTIC)[None]
    random = np.random.default_rng(0)
    tokens = np.where(parts[:, None] == TEXT, 0, random.integers(1, sizes["vocab"], (1, 8, width)))
    batch = PackedBatch(
        text_tokens=np.zeros((1, text_slots, 1), np.int32),
        text_segment_ids=np.ones((1, text_slots), np.int32),
        text_index=np.minimum(np.arange(width), text_slots - 1)[None].astype(np.int32),
        tokens=tokens.astype(np.int32),
        part_ids=parts.astype(np.int32),
        segment_ids=np.ones((1, width), np.int32),
        positions=np.arange(width, dtype=np.int32)[None],
        clip_ids=np.zeros(1, np.int32),
    )
    text_rows = jnp.asarray(random.standard_normal((1, width, sizes["model_dim"])), jnp.float32)

    @jax.jit
    def run(state: nnx.State, batch: PackedBatch) -> jax.Array:
        logits = nnx.merge(graph, state).predict(batch, text_rows, jnp.array([1]))
        return jax.nn.softmax(logits[:, text_slots:]).max(-1)

    return lambda: run(state, batch).block_until_ready()


def make_encodec(sizes: dict[str, int]) -> Callable[[], None]:
    """EnCodec's codes of a clip, eight codebooks."""
    from voxinstruct_jax.audio.encodec import Encodec, EncodecConfig

    codec = Encodec(EncodecConfig.tiny() if sizes["small"] else EncodecConfig(), rngs=nnx.Rngs(0))
    samples = _noise(24_000 * sizes["seconds"])
    return lambda: codec.encode(samples, num_codebooks=8).block_until_ready()


def make_vocos(sizes: dict[str, int]) -> Callable[[], None]:
    """The waveform of a clip's codes."""
    from voxinstruct_jax.audio.published_vocos import CodeVocos, CodeVocosConfig

    config = CodeVocosConfig.tiny() if sizes["small"] else CodeVocosConfig()
    vocos = CodeVocos(config, rngs=nnx.Rngs(0))
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (1, 8, 75 * sizes["seconds"]))
    return lambda: vocos(codes.astype(np.int32)).block_until_ready()


def make_hubert(sizes: dict[str, int]) -> Callable[[], None]:
    """HuBERT's ninth layer of a clip; in the small form its third."""
    from voxinstruct_jax.audio.hubert import Hubert, HubertConfig

    tiny = HubertConfig(conv_dims=(32,) * 7, model_dim=48, num_layers=3, num_heads=4, ffn_dim=96, position_groups=4)
    hubert = Hubert(tiny if sizes["small"] else HubertConfig(num_layers=9), rngs=nnx.Rngs(0))
    samples = _noise(16_000 * sizes["seconds"])
    return lambda: hubert(samples, hubert.config.num_layers).block_until_ready()


PARTS = {
    "AR step, semantic": make_ar,
    "AR step, acoustic": make_ar,
    "NAR pass": make_nar,
    "EnCodec encode": make_encodec,
    "Vocos": make_vocos,
    "HuBERT": make_hubert,
}


def _backbone(sizes: dict[str, int]) -> LlamaConfig:
    heads, dim = sizes["num_heads"], sizes["model_dim"]
    return LlamaConfig(
        num_layers=sizes["num_layers"],
        model_dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=sizes["ffn_dim"],
    )


def _noise(count: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((1, count)).astype(np.float32)


def _plain_environment() -> dict[str, str]:
    """Without the paths of this interpreter's packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


if __name__ == "__main__":
    sys.exit(main())
