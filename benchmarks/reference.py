"""The paper-size system beside a PyTorch program of the same shapes: one run, turn by turn, ratios printed.

Run: uv run python benchmarks/reference.py --torch-python PATH_TO_A_PYTHON_WITH_TORCH [--threads 1]
     (it needs torch and transformers, for Vocos also vocos and encodec; `--small` is a quick try of the program itself)
Bound by: AR steps, reading the weights once a pass: the release runs two passes a semantic token and three an acoustic
one, here the branches are rows of one. The rest is bound by arithmetic.

Weights are random and the networks whole, but for mT5, which runs once a request. An AR step is measured over a chunk
of steps from a full cache, with branches mixed and the best token taken; both sides attend to the same context. Here
all three branches are rows of every step, so that both stages cost the same. Of all turns the shortest counts, once by
the clock and once by processor time, which other programs on the machine disturb less; ratios are PyTorch's over ours.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from full_size import draw

from voxinstruct_jax.layers.dense import put_outputs_first
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.llama import KVCache, LlamaConfig, init_cache
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.vocabulary import SEMANTIC, TEXT, PackedBatch, Vocabulary
from voxinstruct_jax.voice_folder import VoiceConfig

SEMANTIC_A_SECOND, ACOUSTIC_A_SECOND = 30, 75  # HuBERT units after de-duplication (a share of .6 left), EnCodec frames
NAR_PASSES = 7 * 8


def main() -> int:
    """Times every part on both sides in turn and prints the shortest times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", type=Path, required=True, help="interpreter of the PyTorch side")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=7, help="turns of each part (default: 7)")
    parser.add_argument("--seconds", type=int, default=5, help="length of the speech (default: 5)")
    parser.add_argument("--steps", type=int, default=16, help="AR steps a call (default: 16)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both sides (default: all cores)")
    parser.add_argument("--small", action="store_true", help="tiny networks: tries the program, measures nothing")
    options = parser.parse_args()
    os.environ["NPROC"] = str(options.threads)  # read by XLA when the first array is made
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
        "threads": options.threads,
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


def measure(options: argparse.Namespace, sizes: dict[str, int]) -> Iterable[tuple[str, np.ndarray]]:
    """Gives the shortest seconds of a part: by the clock and of processor time, ours and PyTorch's; both take turns."""
    script = Path(__file__).with_name("reference_torch.py")
    command = [str(options.torch_python), str(script), json.dumps(sizes)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=_plain_environment()) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for name in options.parts:
            call = PARTS[name](sizes)
            call()  # compiles
            times = []
            for _ in range(options.repeats):
                print(name, file=worker.stdin, flush=True)
                theirs = json.loads(worker.stdout.readline())
                clock, processor = time.perf_counter(), time.process_time()
                call()
                times.append([[time.perf_counter() - clock, theirs[0]], [time.process_time() - processor, theirs[1]]])
            shortest = np.min(times, axis=0) / (sizes["steps"] if name.startswith("AR") else 1)
            print(f"{name}: {_describe(shortest * 1000, 'ms')}", flush=True)
            yield name, shortest
        worker.stdin.close()


def _describe(times: np.ndarray, unit: str) -> str:
    """Clock and processor time, ours and PyTorch's."""
    return "; ".join(
        f"{kind} {ours:.1f} {unit} here, {theirs:.1f} {unit} in PyTorch, ratio {theirs / ours:.2f}"
        for kind, (ours, theirs) in zip(("clock", "processor"), times, strict=True)
    )


def summarise(found: dict[str, np.ndarray], sizes: dict[str, int]) -> None:
    """Adds the parts up to a clip; prefills and mT5 are left out on both sides."""
    counts = {
        "AR step, semantic": SEMANTIC_A_SECOND * sizes["seconds"],
        "AR step, acoustic": ACOUSTIC_A_SECOND * sizes["seconds"],
        "NAR pass": NAR_PASSES,
        "Vocos": 1,
    }
    parts = np.array([count * found[name] for name, count in counts.items()])
    print(f"{sizes['seconds']} s of speech, eight NAR passes a codebook: {_describe(parts.sum(axis=0), 's')}")
    nar = list(counts).index("NAR pass")
    parts[nar, :, 0] *= sum(VoiceConfig().num_steps) / NAR_PASSES
    print(f"the same, here with num_steps {VoiceConfig().num_steps}: {_describe(parts.sum(axis=0), 's')}")


def make_ar(sizes: dict[str, int]) -> Callable[[], None]:
    """A chunk of AR steps; three branches are rows of one pass."""
    config = ARConfig(backbone=_backbone(sizes), text_encoder=TextEncoderConfig.tiny((8,)))
    model = draw(lambda: ARModel(config, rngs=nnx.Rngs(0)), seed=0)
    put_outputs_first(model.backbone)  # as `load` does
    graph, state = nnx.split(model)
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
    model = draw(lambda: NARModel(config, rngs=nnx.Rngs(0)), seed=0)
    put_outputs_first(model.backbone)
    graph, state = nnx.split(model)
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
        places = jnp.arange(text_slots, width)[None]  # as `fill_codebooks` is called by a voice
        logits = nnx.merge(graph, state).predict(batch, text_rows, jnp.array([1]), places=places)
        return jax.nn.softmax(logits).max(-1)

    return lambda: run(state, batch).block_until_ready()


def make_encodec(sizes: dict[str, int]) -> Callable[[], None]:
    """EnCodec's codes of a clip, eight codebooks."""
    from voxinstruct_jax.audio.encodec import Encodec, EncodecConfig

    config = EncodecConfig.tiny() if sizes["small"] else EncodecConfig()
    codec = draw(lambda: Encodec(config, rngs=nnx.Rngs(0)), seed=0)
    samples = _noise(24_000 * sizes["seconds"])
    return lambda: codec.encode(samples, num_codebooks=8).block_until_ready()


def make_decoder(sizes: dict[str, int]) -> Callable[[], None]:
    """EnCodec's own waveform of a clip's codes."""
    from voxinstruct_jax.audio.encodec import Encodec, EncodecConfig

    config = EncodecConfig.tiny() if sizes["small"] else EncodecConfig()
    codec = draw(lambda: Encodec(config, rngs=nnx.Rngs(0)), seed=0)
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (1, 8, 75 * sizes["seconds"]))
    return lambda: codec.decode(codes.astype(np.int32)).block_until_ready()


def make_vocos(sizes: dict[str, int]) -> Callable[[], None]:
    """The waveform of a clip's codes."""
    from voxinstruct_jax.audio.published_vocos import CodeVocos, CodeVocosConfig

    config = CodeVocosConfig.tiny() if sizes["small"] else CodeVocosConfig()
    vocos = draw(lambda: CodeVocos(config, rngs=nnx.Rngs(0)), seed=0)
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (1, 8, 75 * sizes["seconds"]))
    return lambda: vocos(codes.astype(np.int32)).block_until_ready()


def make_hubert(sizes: dict[str, int]) -> Callable[[], None]:
    """HuBERT's ninth layer of a clip; in the small form its third."""
    from voxinstruct_jax.audio.hubert import Hubert, HubertConfig

    tiny = HubertConfig(conv_dims=(32,) * 7, model_dim=48, num_layers=3, num_heads=4, ffn_dim=96, position_groups=4)
    config = tiny if sizes["small"] else HubertConfig(num_layers=9)
    hubert = draw(lambda: Hubert(config, rngs=nnx.Rngs(0)), seed=0)
    samples = _noise(16_000 * sizes["seconds"])
    return lambda: hubert(samples, hubert.config.num_layers).block_until_ready()


PARTS = {
    "AR step, semantic": make_ar,
    "AR step, acoustic": make_ar,
    "NAR pass": make_nar,
    "EnCodec encode": make_encodec,
    "EnCodec decode": make_decoder,
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
