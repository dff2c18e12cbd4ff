"""NAR model at paper size: VoxInstruct, section 5.1 and table 1, third stage (stressed words).

8 rows of 2,560 slots hold some 32 clips, the paper's batch. The release drops .1 of attention probabilities; fused
attention kernels have no dropout, so there is none here.
It starts from the weights of the stage before: `voxinstruct convert runs/instruct_nar --out weights/instruct_nar`.

Run: voxinstruct train configs/stress_nar.py --out runs/stress_nar --train.init-from weights/instruct_nar
Hardware: accelerators; the paper used 8 A100. `voxinstruct plan configs/stress_nar.py --topology v5e:4x4` says more.
Cost: 100,000 steps of 32 clips (paper); docs/pods.md has what was planned.
Expect: after all three stages WER 2.5 on GigaSpeech-s, English (VoxInstruct, table 2).
Measured: not yet run.
"""

from voxinstruct_jax.training.paper import paper_data, paper_nar
from voxinstruct_jax.training.task import TrainConfig

experiment = paper_nar(
    paper_data("shards/stress", rows=8, description_free_ratio=0.1),
    TrainConfig(steps=100_000, log_every=100, save_every=10_000),
)
