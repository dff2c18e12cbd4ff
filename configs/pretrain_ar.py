"""AR model at paper size: VoxInstruct, section 5.1 and table 1, first stage (quoted transcripts only).

16 rows of 2,560 slots hold some 64 clips, the paper's batch. The release drops .1 of attention probabilities; fused
attention kernels have no dropout, so there is none here.

Run: voxinstruct train configs/pretrain_ar.py --out runs/pretrain_ar --data.shards shards
Hardware: accelerators; the paper used 8 A100. `voxinstruct plan configs/pretrain_ar.py --topology v5e:4x4` says more.
Cost: 1,000,000 steps of 64 clips (paper); docs/pods.md has what was planned.
Expect: after all three stages WER 2.5 on GigaSpeech-s, English (VoxInstruct, table 2).
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
        ARConfig.paper(), backbone=dataclasses.replace(LlamaConfig.paper(), dropout=0.0), dtype="bfloat16"
    ),
    data=TokenData(
        shards="shards", batch=BatchConfig(text_width=512, time_width=2560, rows=16, description_free_ratio=1.0)
    ),
    optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=10_000, decay="inverse_sqrt"),
    train=TrainConfig(steps=1_000_000, log_every=100, save_every=10_000),
    execution=Execution(remat="names"),
)
