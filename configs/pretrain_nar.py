"""NAR model at paper size: VoxInstruct, section 5.1 and table 1, first stage (quoted transcripts only).

Run: voxinstruct train configs/pretrain_nar.py --out runs/pretrain_nar --data.shards shards
Hardware: accelerators; the paper used 8 A100.
Cost: 1M steps of 64 clips (paper); not yet planned for a pod here.
Expect: after all three stages WER 2.5 on GigaSpeech-s, English (VoxInstruct, table 2).
Measured: not yet run.
"""

from voxinstruct_jax.data.batches import BatchConfig
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.nar import NARExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = NARExperiment(
    model=NARConfig.paper(),
    data=TokenData(batch=BatchConfig(text_width=2048, time_width=2560, rows=64, description_free_ratio=1.0)),
    optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=10_000, decay="inverse_sqrt"),
    train=TrainConfig(steps=1_000_000, log_every=100, save_every=10_000),
)
