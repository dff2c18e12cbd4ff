"""Rows a second and peak memory of importing a corpus, of reading, filtering and preparing it, by number of rows.

Run: uv run python benchmarks/manifest_memory.py [--rows 1000 1000000]
The source is a WenetSpeech.json of that many segments over one silent recording, written here. Each step runs in a
process of its own, and prints one line of JSON: step, rows, processor seconds, rows a processor second, peak resident
memory (MiB). What `nothing` takes is the program without rows. `plan` and `index` are what `prepare` does with them
all: it takes their fingerprint, and puts the records of finished shards (written here) together into the index.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SEGMENTS_A_RECORDING = 500
SHARD_SIZE = 4096


def main() -> int:
    """Runs all steps, or the one that `--step` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--step", choices=STEPS, help="only this one, in this process")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.step is not None:
        begin = time.process_time()
        rows = STEPS[options.step](options.folder)
        seconds = time.process_time() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"step": options.step, "rows": rows, "cpu_s": round(seconds, 2)}
        print(json.dumps(found | {"rows_per_cpu_s": round(rows / seconds), "peak_mib": round(peak, 1)}), flush=True)
        return 0
    for count in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_source(Path(folder), count)
            for step in STEPS:
                if step == "index":
                    write_parts(Path(folder), count)
                subprocess.run([sys.executable, __file__, "--step", step, "--folder", folder], check=True)
    return 0


def write_source(folder: Path, count: int) -> None:
    """Writes the corpus: distinct spans of one file, and texts of ten characters."""
    import numpy as np
    import soundfile

    soundfile.write(folder / "a.wav", np.zeros(16000), 16000)
    with (folder / "WenetSpeech.json").open("w", encoding="utf-8") as file:
        file.write('{"audios": [')
        for start in range(0, count, SEGMENTS_A_RECORDING):
            segments = [
                {"sid": f"Y{number:010d}", "confidence": 0.95, "begin_time": 5.0 * number, "end_time": 5.0 * number + 4,
                 "subsets": ["L"], "text": f"怎么样{number}这些日子住得还习惯"}
                for number in range(start, min(start + SEGMENTS_A_RECORDING, count))
            ]  # fmt: skip
            recording = {"aid": str(start), "path": "a.wav", "source": "youtube", "segments": segments}
            file.write((", " if start else "") + json.dumps(recording, ensure_ascii=False))
        file.write("]}")


def write_parts(folder: Path, count: int) -> None:
    """Writes what `prepare` records of each shard: clips of 100 speakers, each with four instructions and its quote."""
    import numpy as np

    from voxinstruct_jax.data.shard_parts import ShardPart, record
    from voxinstruct_jax.data.shards import ShardEntry

    random = np.random.default_rng(0)
    (folder / "shards").mkdir()
    for number in range(-(-count // SHARD_SIZE)):
        size = min(SHARD_SIZE, count - number * SHARD_SIZE)
        name = f"shard-{number:05d}.array_record"
        (folder / "shards" / name).touch()
        part = ShardPart(
            entry=ShardEntry(name=name, num_examples=size, num_bytes=0, sha256=""),
            duration_s=5.0 * size, num_codebooks=8, largest_code=1023, largest_semantic_token=499,
            languages=("zh",) * size, speakers=tuple(f"s{speaker}" for speaker in random.integers(0, 100, size)),
            stressed=(False,) * size, frames=tuple(random.integers(75, 1500, size).tolist()),
            semantic=tuple(random.integers(33, 700, size).tolist()),
            text=tuple(map(tuple, random.integers(10, 90, (size, 5)).tolist())), rejected=(),
        )  # fmt: skip
        record(str(folder / "shards"), number, part)


def nothing(_: Path) -> int:
    """Only the imports of the others."""
    import ijson  # noqa: F401

    import voxinstruct_jax.data.filters
    import voxinstruct_jax.data.importers
    import voxinstruct_jax.data.shard_parts  # noqa: F401

    return 0


def import_corpus(folder: Path) -> int:
    """From the published form to a manifest, as the command does."""
    from voxinstruct_jax.data.filters import FilterConfig, filter_rows, write_rows
    from voxinstruct_jax.data.importers import ImportOptions, import_rows

    rows = import_rows("wenetspeech", str(folder), ImportOptions())
    return write_rows(str(folder / "m.jsonl"), filter_rows(rows, FilterConfig())).rows


def read(folder: Path) -> int:
    """Reads the manifest."""
    from voxinstruct_jax.data.manifest import iter_manifest

    return sum(1 for _ in iter_manifest(folder / "m.jsonl"))


def refilter(folder: Path) -> int:
    """Reads, filters (each filter on) and writes it."""
    from voxinstruct_jax.data.filters import FilterConfig, filter_rows, write_rows
    from voxinstruct_jax.data.importers import ImportOptions, import_rows

    config = FilterConfig(min_duration_s=3, max_words_per_s={"zh": 9}, min_values={"confidence": 0.9}, max_repeats=10)
    rows = import_rows("manifest", str(folder / "m.jsonl"), ImportOptions())
    return write_rows(str(folder / "filtered.jsonl"), filter_rows(rows, config)).rows


def plan(folder: Path) -> int:
    """What `prepare` does before the first clip."""
    from voxinstruct_jax.data.manifest import ManifestRows
    from voxinstruct_jax.data.shard_parts import scan

    return scan(ManifestRows(folder / "m.jsonl"))[0]


def index(folder: Path) -> int:
    """What `prepare` does after the last clip."""
    from voxinstruct_jax.data.shard_parts import assemble

    place = folder / "shards"
    assemble(str(place), len(list((place / "parts").iterdir())), {}, (75.0, 50.0))
    return int(json.loads((place / "index.json").read_text())["num_examples"])


STEPS: dict[str, Callable[[Path], int]] = {
    "nothing": nothing,
    "import": import_corpus,
    "read": read,
    "filter": refilter,
    "plan": plan,
    "index": index,
}

if __name__ == "__main__":
    sys.exit(main())
