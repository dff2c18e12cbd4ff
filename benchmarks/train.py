"""The train step beside the same model in PyTorch, turn by turn; on an accelerator MFU and what each setting gave.

Run: uv run python benchmarks/train.py --torch-python PATH_TO_A_PYTHON_WITH_TORCH [--turns 7]
     uv run python benchmarks/train.py --ladder paper [--model nar]    (GPU or TPU: MFU, audio hours a device-day)
Bound by: arithmetic; in PyTorch and here the same products of matrices, forward and twice backward, and AdamW.

Beside PyTorch: blocks of the embedded voice's size in float32, a head, cross-entropy, AdamW with clipping, full rows
with a causal mask; text and embeddings are left out on both sides. Both take turns; the median over the turns of the
ratio of one turn, and its quartiles, are printed, PyTorch's time over ours: above 1 we are faster; by the clock, and by
processor time, which other programs on the machine disturb less.

The ladder starts from plain XLA attention in float32 without recomputation and adds one setting a rung. MFU counts 6
operations a weight and slot and causal pairs (`training.flops`); audio hours count `FILL` of the slots as audio at
`SLOTS_A_SECOND` slots a second of speech, text included.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from voxinstruct_jax.data.plan import BatchConfig
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.packed_attention import Visibility
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.llama import Llama, LlamaConfig
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.sharding.chips import chip_of
from voxinstruct_jax.sharding.mesh import arrange
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.experiment import program_of
from voxinstruct_jax.training.flops import batch_flops
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.nar import NARExperiment
from voxinstruct_jax.training.optimizer import make_optimizer
from voxinstruct_jax.training.step import build_trainer
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, PackedBatch, Vocabulary

SIZES = {
    "tiny": {"num_layers": 2, "model_dim": 64, "num_heads": 2, "ffn_dim": 128, "vocab": 96, "rows": 2, "time": 64},
    "small": {"num_layers": 4, "model_dim": 256, "num_heads": 4, "ffn_dim": 512, "vocab": 1288, "rows": 2, "time": 512},
}
SLOTS_A_SECOND = 156.0
"""75 of the first codebook, 50 semantic ones, and 512 text slots for 16.4 s."""
FILL = 0.95
TEXT_SHARE = 0.2


def main() -> int:
    """Runs the comparison or the ladder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", type=Path, help="interpreter of the PyTorch side")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="beside PyTorch (default: small)")
    parser.add_argument("--turns", type=int, default=7, help="of both sides (default: 7)")
    parser.add_argument("--steps", type=int, default=3, help="a turn (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both sides (default: all cores)")
    parser.add_argument(
        "--ladder", choices=("tiny", "paper", "large"), help="the settings of a step, one after another"
    )
    parser.add_argument("--model", choices=("ar", "nar"), default="ar", help="of the ladder (default: ar)")
    parser.add_argument("--rows", type=int, default=8, help="a device, of the ladder (default: 8)")
    options = parser.parse_args()
    os.environ["NPROC"] = str(options.threads)  # read by XLA when the first array is made
    if options.ladder:
        return climb(options)
    if options.torch_python is None:
        parser.error("give --torch-python, or --ladder")
    ratios, ours = beside_torch(options)
    for place, kind in enumerate(("clock", "processor")):
        low, middle, high = np.percentile(ratios[:, place], (25, 50, 75))
        print(
            f"{options.size}, {kind}: {1e3 * np.median(ours[:, place]):.0f} ms a step here; "
            f"ratio {middle:.2f} ({low:.2f} to {high:.2f})"
        )
    return 0


def beside_torch(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Returns PyTorch's time over ours, and our seconds a step, of each turn: by the clock and of processor time."""
    sizes = SIZES[options.size] | {"steps": options.steps, "threads": options.threads}
    script = Path(__file__).with_name("train_torch.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    call, pipe = make_steps(sizes), subprocess.PIPE
    call()  # compiles
    command = [str(options.torch_python), str(script), json.dumps(sizes)]
    times = []
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for _ in range(options.turns):
            print("go", file=worker.stdin, flush=True)
            theirs = json.loads(worker.stdout.readline())
            clock, processor = time.perf_counter(), time.process_time()
            call()
            times.append(((time.perf_counter() - clock, time.process_time() - processor), theirs))
        worker.stdin.close()
    ours, theirs = np.moveaxis(np.array(times), 1, 0)
    return theirs / ours, ours / options.steps


def make_steps(sizes: dict[str, int]) -> Callable[[], None]:
    """Some train steps of the blocks and a head on the same rows."""
    dim, heads = sizes["model_dim"], sizes["num_heads"]
    config = LlamaConfig(
        num_layers=sizes["num_layers"],
        model_dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=sizes["ffn_dim"],
        dropout=0.0,
    )
    graph, params = nnx.split(Llama(config, rngs=nnx.Rngs(0)))
    state = {"blocks": params, "head": 0.02 * jax.random.normal(jax.random.key(0), (dim, sizes["vocab"]))}
    shape = sizes["rows"], sizes["time"]
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((*shape, dim)), jnp.float32)
    targets = jnp.asarray(random.integers(0, sizes["vocab"], shape))
    positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    seen = Visibility(segment_ids=jnp.ones(shape, jnp.int32), causal=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.1))
    moments = optimizer.init(state)

    def loss(state: dict) -> jax.Array:
        hidden = nnx.merge(graph, state["blocks"])(x, positions, seen)
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ state["head"], targets).mean()

    @jax.jit
    def step(state: dict, moments: optax.OptState) -> tuple[dict, optax.OptState]:
        updates, moments = optimizer.update(jax.grad(loss)(state), moments, state)
        return optax.apply_updates(state, updates), moments

    def call() -> None:
        nonlocal state, moments
        for _ in range(sizes["steps"]):
            state, moments = step(state, moments)
        jax.block_until_ready(state)

    return call


def climb(options: argparse.Namespace) -> int:
    """Prints a line a rung."""
    kernel = {"gpu": "triton", "tpu": "splash"}.get(jax.default_backend(), "reference")
    rungs = {
        "plain, float32": ("float32", Execution(attention="reference")),
        "bfloat16": ("bfloat16", Execution(attention="reference")),
        f"attention {kernel}": ("bfloat16", Execution(attention=kernel)),
        "loss in chunks": ("bfloat16", Execution(attention=kernel, loss_chunk=512)),
        "remat names": ("bfloat16", Execution(attention=kernel, loss_chunk=512, remat="names")),
        "remat full, scan": ("bfloat16", Execution(attention=kernel, loss_chunk=512, remat="full", scan=True)),
    }
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    print(f"{options.model}, {options.ladder}, {options.rows} rows a device on {device.device_kind}")
    for name, (dtype, execution) in rungs.items():
        experiment = build(options, dtype, execution)
        try:
            seconds, flops, slots = measure(experiment, options.turns)
        except jax.errors.JaxRuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0][:100]}")
            continue
        hours = slots * FILL / SLOTS_A_SECOND / seconds * 24
        mfu = f"MFU {flops / seconds / chip.flops:.1%}" if chip else "MFU not known, nor are the chip's constants"
        print(f"{name}: {seconds * 1e3:.1f} ms a step, {mfu}, {hours:,.0f} audio hours a device-day", flush=True)
    return 0


def build(options: argparse.Namespace, dtype: str, execution: Execution) -> ARExperiment | NARExperiment:
    """The experiment of one rung."""
    is_ar = options.model == "ar"
    config = ARConfig if is_ar else NARConfig
    model = config.tiny(vocabulary=Vocabulary(), channel_sizes=(8,)) if options.ladder == "tiny" else config.paper()
    backbone = LlamaConfig.large() if options.ladder == "large" else model.backbone
    text = dataclasses.replace(model.text_encoder, dropout=0.0)
    model = dataclasses.replace(
        model, backbone=dataclasses.replace(backbone, dropout=0.0), text_encoder=text, dtype=dtype
    )
    widths = (
        {"text_width": 64, "time_width": 128} if options.ladder == "tiny" else {"text_width": 512, "time_width": 2560}
    )
    data = TokenData(batch=BatchConfig(rows=options.rows, **widths))
    return (ARExperiment if is_ar else NARExperiment)(model=model, data=data, execution=execution)


def measure(experiment: ARExperiment | NARExperiment, turns: int) -> tuple[float, float, int]:
    """Seconds and useful operations of a step, and its slots."""
    program, mesh = program_of(experiment), arrange(experiment.mesh, jax.devices()[:1])
    trainer = build_trainer(
        program.build_model,
        program.objective,
        make_optimizer(experiment.optimizer),
        mesh,
        seed=0,
        config=experiment.step,
    )
    batch = full_rows(experiment)
    state, _ = trainer.step(trainer.init(), batch)  # compiles
    jax.block_until_ready(state)
    times = []
    for _ in range(turns):
        since = time.perf_counter()
        state, metrics = trainer.step(state, batch)
        float(metrics["loss"])
        times.append(time.perf_counter() - since)
    assert program.flops is not None
    return float(np.median(times)), batch_flops(program.flops, batch), int(np.count_nonzero(batch.segment_ids))


def full_rows(experiment: ARExperiment | NARExperiment) -> PackedBatch:
    """Rows of four clips each, of text, semantic and acoustic slots."""
    batch, vocabulary = experiment.data.batch, experiment.model.vocabulary
    rows, time_width = batch.rows, batch.time_width
    clip, place = np.divmod(np.arange(time_width), time_width // 4)
    text = int(TEXT_SHARE * time_width / 4)
    part = np.where(place < text, TEXT, np.where(place < text + (time_width // 4 - text) * 2 // 5, SEMANTIC, ACOUSTIC))
    random = np.random.default_rng(0)
    tokens = random.integers(vocabulary.acoustic_offset, vocabulary.bos, (rows, vocabulary.num_codebooks, time_width))
    text_clip, text_place = np.divmod(np.arange(batch.text_width), text)
    real = text_clip < 4

    def repeat(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, (rows, *values.shape)).astype(np.int32)

    return PackedBatch(
        text_tokens=repeat(np.where(real, 1 + text_place % 7, 0)[:, None]),
        text_segment_ids=repeat(np.where(real, text_clip + 1, 0)),
        text_index=repeat(np.where(part == TEXT, clip * text + np.minimum(place, text - 1), 0)),
        tokens=np.where(part == TEXT, 0, tokens).astype(np.int32),
        part_ids=repeat(part),
        segment_ids=repeat(clip + 1),
        positions=repeat(place),
        clip_ids=np.arange(rows, dtype=np.int32),
    )


if __name__ == "__main__":
    sys.exit(main())
