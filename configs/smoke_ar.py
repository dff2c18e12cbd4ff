"""A tiny AR model on the bundled dev tokens: shows that training, logging, saving and resuming work.

Run: voxinstruct train configs/smoke_ar.py --out runs/smoke_ar
Hardware: two CPU cores.
Cost: 100 steps, about a minute.
Expect: loss falls below 5.6, well under the 7.2 of a uniform guess.
Measured: by the tests.
"""

from voxinstruct_jax.data.batches import BatchConfig
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.vocabulary import Vocabulary

experiment = ARExperiment(
    model=ARConfig.tiny(
        vocabulary=Vocabulary(num_semantic=256, codebook_size=1024, num_codebooks=4),
        channel_sizes=PronunciationTokenizer().channel_sizes,
    ),
    data=TokenData(shards="corpus/dev", batch=BatchConfig(text_width=320, time_width=512, rows=2, max_clips=8)),
    optimizer=OptimizerConfig(
        peak_lr=3e-3, warmup_steps=20, decay="cosine", decay_steps=100, beta2=0.98, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=100, log_every=10, save_every=50),
)
