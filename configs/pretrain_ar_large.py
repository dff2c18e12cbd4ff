"""AR model of 1.24 billion trained weights beside the frozen mT5: the paper's first stage, larger.

Run: voxinstruct train configs/pretrain_ar_large.py --out runs/pretrain_ar_large --data.shards shards
Hardware: a pod; `voxinstruct plan configs/pretrain_ar_large.py --topology v5p:4x4x8 --mesh.fsdp 16` says more.
Cost: docs/pods.md has what was planned.
Expect: not known; no run of this size is published for this model.
Measured: not yet run.
"""

from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.training.paper import paper_ar, paper_data
from voxinstruct_jax.training.task import TrainConfig

experiment = paper_ar(
    paper_data("shards", rows=512, description_free_ratio=1.0),
    TrainConfig(steps=500_000, log_every=100, save_every=5_000),
    backbone=LlamaConfig.large(),
    execution=Execution(remat="full", scan=True, loss_chunk=512),
)
