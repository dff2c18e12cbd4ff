"""What a second of speech costs with the embedded voice, and what guidance adds: ratios within one run.

Run: uv run python benchmarks/synthesis_cost.py
Bound by: one token a step, so by the latency of a small forward pass (AR), not by arithmetic.
"""

import statistics
import sys
import time

import voxinstruct_jax as vox

INSTRUCTION = 'A woman says at a normal pace: "The library opens again on the second Monday of the month."'
REPEATS = 5


def main() -> int:
    """Times full guidance against none; the first call of each compiles and is not counted."""
    voice = vox.load()
    settings = {
        "no guidance (1 branch)": vox.Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0),
        "full guidance (3 branches)": vox.Guidance(),
    }
    costs = {}
    for name, guidance in settings.items():
        voice.synthesize(INSTRUCTION, guidance=guidance, seed=0)
        runs = []
        for seed in range(REPEATS):
            start = time.perf_counter()
            audio = voice.synthesize(INSTRUCTION, guidance=guidance, seed=seed)
            runs.append((time.perf_counter() - start) / audio.duration_s)
        costs[name] = statistics.median(runs)
        print(f"{name}: {costs[name]:.2f} s of compute a second of speech (median of {REPEATS})")
    plain, guided = costs.values()
    print(f"ratio full / none: {guided / plain:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
