"""Which guidance helps the embedded voice: VoxInstruct's table 6 over one checkpoint.

Five systems that differ in guidance alone speak the same sentences with the same seeds: none, instruction on semantic
tokens (ST), instruction on acoustic tokens (AT), ST on AT, and ST blanked.

Run: voxinstruct compare configs/compare_ablation_small.py --out runs/ablation --metrics wer,pinyin,runaway,rtf
Hardware: two CPU cores; extra asr.
Cost: 200 sentences, some six minutes.
Expect: blanked ST worse (26.2 % against 3.0 % in the paper); between the others, differences within chance.
Measured: see docs/release.md; twenty sentences a language tell large differences only.
"""

from voxinstruct_jax.evaluation.experiment import CompareExperiment, ablation

experiment = CompareExperiment(systems=ablation(), requests="benchmarks/unseen_requests.jsonl", seeds=(0,), limit=20)
