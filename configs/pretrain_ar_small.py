"""AR model of the embedded voice, first stage: quoted transcripts only.

After VoxInstruct, sections 4.2 and 5.1, in miniature: instruction to language, semantic tokens and first codebook.
Which words are said, and in whose voice a prompt speaks, before any description.

Run: voxinstruct train configs/pretrain_ar_small.py --out runs/pretrain_ar
Hardware: two CPU cores; a model a core trains side by side.
Cost: 3,000 steps of 1,024 slots, about a second each on a core.
Expect: semantic loss well below the unigram entropy of the tokens.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.data.mixture import Kinds
from voxinstruct_jax.training.small import small_ar, small_data

experiment = small_ar(small_data(Kinds(transcript=1.0), prompt_ratio=0.3, row_slots=512), steps=3000)
