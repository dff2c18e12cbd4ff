"""AR model at paper size: VoxInstruct, section 5.1 and table 1, first stage (quoted transcripts only).

16 rows of 2,560 slots hold some 64 clips, the paper's batch. The release drops .1 of attention probabilities; fused
attention kernels have no dropout, so there is none here.

Run: voxinstruct train configs/pretrain_ar.py --out runs/pretrain_ar --data.shards shards
Hardware: accelerators; the paper used 8 A100. `voxinstruct plan configs/pretrain_ar.py --topology v5e:4x4` says more.
Cost: 1,000,000 steps of 64 clips (paper); docs/pods.md has what was planned.
Expect: after all three stages WER 2.5 on GigaSpeech-s, English (VoxInstruct, table 2).
Measured: not yet run; compiled for pods, see docs/pods.md.
"""

from voxinstruct_jax.training.paper import paper_ar, paper_data
from voxinstruct_jax.training.task import TrainConfig

experiment = paper_ar(
    paper_data("shards", rows=16, description_free_ratio=1.0),
    TrainConfig(steps=1_000_000, log_every=100, save_every=10_000),
)
