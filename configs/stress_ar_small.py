"""AR model of the embedded voice, third stage: stressed words.

After VoxInstruct, sections 4.2 and 5.1, in miniature: instruction to language, semantic tokens and first codebook.
Half of the clips have a word whose stress was edited in (docs/stress.md); the others keep what was learnt before.
It starts from the weights of the stage before: `voxinstruct convert runs/instruct_ar --out weights/instruct_ar`.

Run: voxinstruct train configs/stress_ar_small.py --out runs/stress_ar --train.init-from weights/instruct_ar
Hardware: two CPU cores; a model a core trains side by side.
Cost: 600 steps of 1,024 slots, about a second each on a core.
Expect: semantic loss well below the unigram entropy of the tokens.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.data.mixture import Kinds
from voxinstruct_jax.training.small import small_ar, small_data

experiment = small_ar(small_data(Kinds(transcript=0.2, instruction=0.3, fine_grained=0.5)), steps=600, peak_lr=0.0004)
