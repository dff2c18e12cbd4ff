"""NAR model of the embedded voice, third stage: stressed words.

After VoxInstruct, sections 4.2 and 5.1, in miniature: first codebook, semantic tokens, instruction to the others.
Half of the clips have a word whose stress was edited in (docs/stress.md); the others keep what was learnt before.
It starts from the weights of the stage before: `voxinstruct convert runs/instruct_nar --out weights/instruct_nar`.

Run: voxinstruct train configs/stress_nar_small.py --out runs/stress_nar --train.init-from weights/instruct_nar
Hardware: two CPU cores; a model a core trains side by side.
Cost: 600 steps of 1,024 slots, about a second each on a core.
Expect: accuracy on masked places of the second codebook far above the share of its commonest code.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.data.mixture import Kinds
from voxinstruct_jax.training.small import small_data, small_nar

experiment = small_nar(small_data(Kinds(transcript=0.2, instruction=0.3, fine_grained=0.5)), steps=600, peak_lr=0.0004)
