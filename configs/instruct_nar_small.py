"""NAR model of the embedded voice, second stage: instructions.

After VoxInstruct, sections 4.2 and 5.1, in miniature: first codebook, semantic tokens, instruction to the others.
Rows are long enough for clips of sixteen seconds.
It starts from the weights of the stage before: `voxinstruct convert runs/pretrain_nar --out weights/pretrain_nar`.

Run: voxinstruct train configs/instruct_nar_small.py --out runs/instruct_nar --train.init-from weights/pretrain_nar
Hardware: two CPU cores; a model a core trains side by side.
Cost: 5,000 steps of 1,024 slots, about a second each on a core.
Expect: accuracy on masked places of the second codebook far above the share of its commonest code.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.training.small import INSTRUCT, small_data, small_nar

experiment = small_nar(small_data(INSTRUCT), steps=5000)
