"""NAR model of the embedded voice, second stage: instructions.

After VoxInstruct, sections 4.2 and 5.1, in miniature: first codebook, semantic tokens, instruction to the others.
Rows are long enough for clips of seven seconds; half as long as the AR model's, they cost half of the attention.
It starts from the weights of the stage before: `voxinstruct convert runs/pretrain_nar --out weights/pretrain_nar`.

Run: voxinstruct train configs/instruct_nar_small.py --out runs/instruct_nar --train.init-from weights/pretrain_nar
Hardware: two CPU cores; a model a core trains side by side.
Cost: 8,500 steps of 1,024 slots, less than half a second each on a core: 55 minutes.
Expect: loss_codebook_2 below 5; guessing by frequency costs 6.7.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.training.small import INSTRUCT, small_data, small_nar

experiment = small_nar(small_data(INSTRUCT, row_slots=512), steps=8500)
