"""Loader of token batches: tokens a second a core against what an H100 eats, waste, and memory by corpus size.

Run: uv run python benchmarks/loader.py [--records 1000 1000000] [--json loader.json]
Bound by: Python and NumPy on one core (unpacking records, looking up pronunciations, filling rows).

The lengths are drawn like those of GigaSpeech and WenetSpeech: 1 to 20 s, log-normal, mean near 5 s. Rows and sizes are
those of configs/pretrain_ar.py. A corpus of many records is a few prepared ones read again and again: the index is
whole, the shard is small. `own_mb` is the memory of the process itself; `peak_mb` counts what it has mapped of files
too, which the system shares between processes and takes back when it needs to.
"""

import argparse
import dataclasses
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

H100_FLOPS = 989e12
"""bfloat16, dense, per second: NVIDIA's data sheet."""
TARGET_MFU = 0.40
PARAMETERS = 205_865_984
"""Trained weights of the AR model at paper size: voxinstruct inspect configs/pretrain_ar.py."""
STORED = 512
"""Clips in the shard."""
ALPHABET = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box"]
FRAME_RATE, UNIT_RATE, CHARACTER_RATE = 75, 33, 14


def write_corpus(folder: Path, records: int) -> None:
    """Writes a shard of `STORED` clips and an index that holds it as often as `records` asks for."""
    from voxinstruct_jax.data.shards import Example, Lengths, ShardEntry, ShardIndex, write_index, write_shard
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

    random, tokenizer, examples = np.random.default_rng(0), PronunciationTokenizer(), []
    for number, seconds in enumerate(np.clip(random.lognormal(np.log(4.2), 0.6, STORED), 1, 20)):
        words = " ".join(random.choice(ALPHABET, int(seconds * CHARACTER_RATE / 5)))
        examples.append(
            Example(
                id=str(number),
                language="en",
                transcript=words,
                instructions=(f'"{words}"',),
                semantic_tokens=random.integers(0, 500, int(seconds * UNIT_RATE)).astype(np.int16),
                run_lengths=np.ones(int(seconds * UNIT_RATE), np.int16),
                codes=random.integers(0, 1024, (8, int(seconds * FRAME_RATE))).astype(np.int16),
            )
        )
    entry = write_shard(folder / "shard-00000.array_record", examples)
    assert entry is not None
    copies = -(-records // STORED)
    index = ShardIndex(
        fingerprints={"codec": "c", "units": "u", "tokenizer": tokenizer.fingerprint},
        frame_rate=FRAME_RATE,
        num_examples=copies * STORED,
        hours=copies * sum(e.codes.shape[1] for e in examples) / FRAME_RATE / 3600,
        num_codebooks=8,
        largest_code=1023,
        largest_semantic_token=499,
        languages={"en": copies * STORED},
        shards=tuple(ShardEntry(**dataclasses.asdict(entry)) for _ in range(copies)),
    )
    text = np.array([len(tokenizer.encode(e.instructions[0])) for e in examples], np.int32)
    lengths = Lengths(
        frames=np.tile(np.array([e.codes.shape[1] for e in examples], np.int32), copies),
        semantic=np.tile(np.array([len(e.semantic_tokens) for e in examples], np.int32), copies),
        text=np.tile(text, copies),
        text_offsets=np.arange(copies * STORED + 1, dtype=np.int64),
        speakers=np.tile(np.arange(STORED, dtype=np.int32) % 40, copies),
        languages=np.zeros(copies * STORED, np.int8),
        stressed=np.zeros(copies * STORED, bool),
    )
    write_index(folder, index, lengths)


def own_memory() -> float:
    """Of this process, without what is mapped from files (MB)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def measure(folder: str, records: int, sink: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Opens the corpus, reads steps, and tells times and memory of this process."""
    from voxinstruct_jax.data.batches import BatchConfig, TokenBatches
    from voxinstruct_jax.data.plan import LANE_ROWS
    from voxinstruct_jax.data.shards import ShardReader
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
    from voxinstruct_jax.vocabulary import Vocabulary

    reader = ShardReader(folder)
    config = BatchConfig(text_width=448, time_width=2816, rows=64, prompt_ratio=0.1)
    start = time.perf_counter()
    batches = TokenBatches(reader, PronunciationTokenizer(), Vocabulary(), config)
    ready = time.perf_counter() - start
    own = [own_memory()]
    start = time.perf_counter()
    batches[0]
    first = time.perf_counter() - start
    start = time.perf_counter()
    batches[1_000_000]
    late = time.perf_counter() - start
    cpu, tokens = time.process_time(), 0
    for step in range(8):
        tokens += int(np.count_nonzero(batches[step].segment_ids))
    cpu = time.process_time() - cpu
    block, _ = batches.planner.place(2_000_000, 0)
    batches.planner.block(block)
    start = time.process_time()
    planned = batches.planner.block(block + config.rows // LANE_ROWS)
    plan = time.process_time() - start
    own.append(own_memory())
    summary = batches.planner.summary()
    sink.put(
        {
            "records": records,
            "ready_s": ready,
            "first_batch_s": first,
            "batch_of_step_1000000_s": late,
            "tokens_per_core_s": tokens / cpu,
            "plan_us_per_clip": plan / len(planned.clips) * 1e6,
            "waste": summary.waste,
            "text_waste": summary.text_waste,
            "clips_per_step": summary.clips_per_step,
            "own_mb": max(own),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


def main() -> int:
    """Measures each corpus size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    for records in options.records:
        with tempfile.TemporaryDirectory() as folder:
            writer = context.Process(target=write_corpus, args=(Path(folder), records))
            writer.start()
            writer.join()
            sink = context.Queue()
            process = context.Process(target=measure, args=(folder, records, sink))
            process.start()
            rows.append(sink.get())
            process.join()
    target = H100_FLOPS * TARGET_MFU / (6 * PARAMETERS)
    found = {"target_tokens_per_s": target, "target_mfu": TARGET_MFU, "rows": rows}
    for name in rows[0]:
        print(f"{name:>26}: " + "  ".join(f"{row[name]:>14,.4g}" for row in rows))
    ratio = target / rows[-1]["tokens_per_core_s"]
    print(f"an H100 at {TARGET_MFU:.0%} MFU eats {target:,.0f} tokens/s: {ratio:.2f} cores a GPU")
    print(f"own memory grows by {rows[-1]['own_mb'] - rows[0]['own_mb']:.0f} MB")
    if options.json:
        options.json.write_text(json.dumps({**found, "cores_per_gpu": ratio}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
