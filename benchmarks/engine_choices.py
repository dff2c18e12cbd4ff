"""What the engine's choices cost in tokens and gain in time, with the embedded voice: cache types and speculation.

Run: uv run python benchmarks/engine_choices.py [--requests 8]
Bound by: AR steps of eight guided requests, 24 rows.

Each choice decodes the same requests in one batch; the plain float32 cache is the other side. Token agreement is the
share of equal tokens, place by place: after the first token that differs a sequence goes on by itself. Speculation
takes its draft from the units and codes of the voice's training speech. All sides take turns; of all turns the shortest
counts.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from synthesize import read_requests

import voxinstruct_jax as vox
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.decoding.engine import run_fill
from voxinstruct_jax.decoding.requests import ARResult, Capacity, batch_requests
from voxinstruct_jax.decoding.slots import SlotSizes, SlotState, empty_slots, run_steps, step_slots
from voxinstruct_jax.decoding.speculation import count_draft, step_with_draft
from voxinstruct_jax.guidance import Branch
from voxinstruct_jax.vocabulary import expand

CORPUS = Path(__file__).parents[1] / "corpus" / "train"
CONTEXT, FRAMES = 1024, 400


def main() -> int:
    """Prints agreement and time of each choice against the plain one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=8, help="requests in the batch (default: 8)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--only", nargs="*", default=[], help="names of choices")
    options = parser.parse_args()
    voice = vox.load()
    choices = dict(make_choices(voice, options.requests, options.only))
    results = {name: call() for name, call in choices.items()}  # compiles
    times: dict[str, list[float]] = {name: [] for name in choices}
    for _ in range(options.turns):
        for name, call in choices.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    plain, steps = results["plain"]
    for name, (result, used) in results.items():
        agree = agreement(result, plain)
        ratio = min(times[name]) / min(times["plain"])
        print(f"{name}: {agree:.1%} of tokens agree, {used} steps of {steps}, time {ratio:.2f} of plain", flush=True)
    return 0


def make_choices(
    voice: vox.Voice, count: int, only: list[str]
) -> Iterator[tuple[str, Callable[[], tuple[ARResult, int]]]]:
    """Names and calls that decode all requests and give what came out and the steps it took; `only` some, if named."""
    models = voice._models()
    requests = [voice._prepare(item, []).ar for item in read_requests(count)]
    rows = count * len(Branch)
    capacity = Capacity(semantic=FRAMES, acoustic=FRAMES)
    sizes = SlotSizes(slots=count, rows=rows, context=CONTEXT, capacity=capacity, text=256)
    batch = batch_requests(requests, tuple(Branch), text_width=256)
    ar, table = models.ar, count_draft(draft_clips(), models.ar.config.vocabulary)

    def begin(dtype: Any) -> SlotState:
        state = jax.jit(functools.partial(empty_slots, ar.config, sizes, models.sampling, cache_dtype=dtype))()
        places = jnp.arange(count), jnp.arange(rows).reshape(count, -1)
        return run_fill(ar.graph, ar.state, state, batch, *places, tuple(Branch), models.rules)

    @functools.partial(jax.jit, static_argnums=2)
    def run(weights: Any, state: SlotState, draft: int) -> tuple[Any, ARResult]:
        model, settings = nnx.merge(ar.graph, weights), (models.sampling, models.rules)

        def step(state: SlotState) -> SlotState:
            if not draft:
                return step_slots(model, state, *settings)
            return step_with_draft(model, state, table, draft, *settings)

        used, state = run_steps(step, state, None)
        return used, state.result

    def decode(state: SlotState, draft: int) -> tuple[ARResult, int]:
        used, result = jax.device_get(run(ar.state, state, draft))
        return result, int(used)

    plain = begin(None)
    for name, dtype, draft in (
        ("plain", None, 0),
        ("bfloat16", "bfloat16", 0),
        ("float8_e4m3fn", "float8_e4m3fn", 0),
        ("speculation 1", None, 1),
        ("speculation 2", None, 2),
    ):
        if name == "plain" or not only or name in only:
            state = begin(jnp.dtype(dtype)) if dtype else plain
            yield name, functools.partial(decode, state, draft)


def draft_clips() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Units, one a frame, and first codes of the training speech."""
    reader = ShardReader(CORPUS)
    for number in range(len(reader)):
        example = reader[number]
        units = expand(example.semantic_tokens, example.run_lengths)
        yield units, example.codes[0][: len(units)].astype(np.int32)


def agreement(one: ARResult, other: ARResult) -> float:
    """Share of equal tokens; a place that only one has does not agree."""
    equal = total = 0
    for tokens, lengths in (("semantic_tokens", "semantic_lengths"), ("codes", "code_lengths")):
        sizes = np.asarray(getattr(one, lengths)), np.asarray(getattr(other, lengths))
        places = np.arange(getattr(one, tokens).shape[1])
        inside = [places < size[:, None] for size in sizes]
        same = np.asarray(getattr(one, tokens)) == np.asarray(getattr(other, tokens))
        equal += int((same & inside[0] & inside[1]).sum())
        total += int((inside[0] | inside[1]).sum())
    return equal / total


if __name__ == "__main__":
    sys.exit(main())
