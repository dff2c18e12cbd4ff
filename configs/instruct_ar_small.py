"""AR model of the embedded voice, second stage: instructions.

After VoxInstruct, sections 4.2 and 5.1, in miniature: instruction to language, semantic tokens and first codebook.
Rows are long enough for clips of sixteen seconds.
It starts from the weights of the stage before: `voxinstruct convert runs/pretrain_ar --out weights/pretrain_ar`.

Run: voxinstruct train configs/instruct_ar_small.py --out runs/instruct_ar --train.init-from weights/pretrain_ar
Hardware: two CPU cores; a model a core trains side by side.
Cost: 5,000 steps of 1,024 slots, about a second each on a core.
Expect: semantic loss well below the unigram entropy of the tokens.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.training.small import INSTRUCT, small_ar, small_data

experiment = small_ar(small_data(INSTRUCT), steps=5000)
