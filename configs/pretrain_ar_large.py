"""AR model of 1.24 billion trained weights beside the frozen mT5: the paper's first stage, larger.

Run: voxinstruct train configs/pretrain_ar_large.py --out runs/pretrain_ar_large --data.shards shards
Hardware: a pod; `voxinstruct plan configs/pretrain_ar_large.py --topology v5p:4x4x8 --mesh.fsdp 16` says more.
Cost: docs/pods.md has what was planned.
Expect: not known; no run of this size is published for this model.
Measured: not yet run; compiled for pods, see docs/pods.md.
"""

import dataclasses

from voxinstruct_jax.data.batches import BatchConfig
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = ARExperiment(
    model=dataclasses.replace(
        ARConfig.paper(), backbone=dataclasses.replace(LlamaConfig.large(), dropout=0.0), dtype="bfloat16"
    ),
    data=TokenData(batch=BatchConfig(text_width=512, time_width=2560, rows=512, description_free_ratio=1.0)),
    optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=10_000, decay="inverse_sqrt"),
    train=TrainConfig(steps=500_000, log_every=100, save_every=5_000, keep=2),
    execution=Execution(remat="full", scan=True, loss_chunk=512),
)
