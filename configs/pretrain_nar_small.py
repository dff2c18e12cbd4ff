"""NAR model of the embedded voice, first stage: quoted transcripts only.

After VoxInstruct, sections 4.2 and 5.1, in miniature: first codebook, semantic tokens, instruction to the others.
Which words are said, and in whose voice a prompt speaks, before any description.

Run: voxinstruct train configs/pretrain_nar_small.py --out runs/pretrain_nar
Hardware: two CPU cores; a model a core trains side by side.
Cost: 3,000 steps of 1,024 slots, about a second each on a core.
Expect: accuracy on masked places of the second codebook far above the share of its commonest code.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.data.mixture import Kinds
from voxinstruct_jax.training.small import small_data, small_nar

experiment = small_nar(small_data(Kinds(transcript=1.0), prompt_ratio=0.3, row_slots=512), steps=3000)
