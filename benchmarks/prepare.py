"""What `prepare` costs: hours of speech a core-hour by stage, memory of a worker, bytes an hour, batches against clips.

Run: uv run --extra asr python benchmarks/prepare.py tests/corpus/generated/manifest.jsonl --batch-s 0 64

One process on one core. Times are processor time, so that other load of the machine hardly shows. A first pass over the
same clips compiles and is not counted. Reading goes on in threads beside the other stages, which count it once more.
"""

import argparse
import dataclasses
import itertools
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"NPROC": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}

from voxinstruct_jax.audio.semantic import SemanticUnits
from voxinstruct_jax.cli.prepare import _encoders
from voxinstruct_jax.data import prepare
from voxinstruct_jax.data.manifest import Row, iter_manifest
from voxinstruct_jax.voice_folder import embedded_release

SPENT: Counter[str] = Counter()


def main() -> None:
    """Prints a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--batch-s", type=float, nargs="+", default=[0.0], help="sound encoded at once (s); 0 = a clip")
    options = parser.parse_args()
    rows = list(itertools.islice(iter_manifest(options.manifest), options.clips))
    prepare.read_clip = timed("read and resample", prepare.read_clip, time.thread_time)
    prepare.write_shard = timed("write", prepare.write_shard)
    SemanticUnits.assign = timed("units", SemanticUnits.assign)
    for batch_s in options.batch_s:
        measure(rows, batch_s)


def measure(rows: list[Row], batch_s: float) -> None:
    """Prepares the rows twice and prints where the time of the second pass went."""
    encoders = _encoders(embedded_release(), batch_s=batch_s)
    ahead = {"encode_ahead": timed("codec and features", encoders.encode_ahead)} if batch_s else {"encode_ahead": None}
    encoders = dataclasses.replace(
        encoders,
        acoustic=timed("codec", encoders.acoustic),
        semantic=timed("features and units", encoders.semantic),
        durations=timed("durations", encoders.durations),
        **ahead,
    )
    for _ in range(2):
        SPENT.clear()
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            reader = prepare.prepare(rows, Path(folder) / "out", encoders, progress=False)
            total = time.process_time() - before
            hours, size = reader.index.hours, sum(shard.num_bytes for shard in reader.index.shards)
    print(f"{len(rows)} clips, {hours:.3f} h, {batch_s:g} s a batch")
    SPENT["features"] = SPENT.pop("features and units") - SPENT["units"]
    SPENT["the rest"] = total - sum(SPENT.values())
    for stage, seconds in [*SPENT.most_common(), ("all", total)]:
        print(f"  {stage:<20}{hours * 3600 / max(seconds, 1e-3):8.0f} hours a core-hour {seconds / total:7.1%}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"  {size / hours / 1e6:.2f} MB an hour; {peak / 1e9:.2f} GB peak memory", flush=True)


def timed(stage: str, function: Callable[..., Any] | None, clock: Callable[[], float] = time.process_time) -> Any:
    """Adds the time that a function takes to its stage."""

    def call(*arguments: Any, **named: Any) -> Any:
        assert function is not None
        before = clock()
        try:
            return function(*arguments, **named)
        finally:
            SPENT[stage] += clock() - before

    return call


if __name__ == "__main__":
    main()
