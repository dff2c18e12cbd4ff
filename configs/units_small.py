"""Semantic units of the embedded voice: 256 k-means centroids over phone discriminants of Whisper features at 25 Hz.

Stands in for VoxInstruct's HuBERT layer 9 with 500 units, whose weights cannot be redistributed here.

Run: voxinstruct train configs/units_small.py --out voice/units --manifest corpus/manifest.jsonl
Hardware: two CPU cores.
Cost: about 7 minutes for two hours of speech.
Expect: units that phones tell to about 1.6 nats of 5.4, and that tell Mandarin tones (see the card).
Measured: 2026-11-21, see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.training.units import UnitsExperiment

experiment = UnitsExperiment(num_units=256, num_discriminants=40)
