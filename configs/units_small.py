"""Semantic units of the embedded voice: 400 k-means centroids over Whisper's fourth encoder layer at 25 Hz.

Stands in for VoxInstruct's HuBERT layer 9 with 500 units, whose weights cannot be redistributed here.

Run: voxinstruct train configs/units_small.py --out voice/units --manifest corpus/manifest.jsonl
Hardware: two CPU cores.
Cost: about 4 minutes for two hours of speech.
Expect: the same sentence by another voice is much nearer in units than another sentence (see the card).
Measured: 2026-11-21, see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.training.units import UnitsExperiment

experiment = UnitsExperiment(num_units=400)
