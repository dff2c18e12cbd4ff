"""AR model at paper size: VoxInstruct, section 5.1 and table 1, second stage (instructions).

8 rows of 2,560 slots hold some 32 clips, the paper's batch. The release drops .1 of attention probabilities; fused
attention kernels have no dropout, so there is none here.
It starts from the weights of the stage before: `voxinstruct convert runs/pretrain_ar --out weights/pretrain_ar`.

Run: voxinstruct train configs/instruct_ar.py --out runs/instruct_ar --train.init-from weights/pretrain_ar
Hardware: accelerators; the paper used 8 A100. `voxinstruct plan configs/instruct_ar.py --topology v5e:4x4` says more.
Cost: 800,000 steps of 32 clips (paper); docs/pods.md has what was planned.
Expect: after all three stages WER 2.5 on GigaSpeech-s, English (VoxInstruct, table 2).
Measured: not yet run.
"""

from voxinstruct_jax.training.paper import paper_ar, paper_data
from voxinstruct_jax.training.task import TrainConfig

experiment = paper_ar(
    paper_data("shards/instruct", rows=8, description_free_ratio=0.1),
    TrainConfig(steps=800_000, log_every=100, save_every=10_000),
)
