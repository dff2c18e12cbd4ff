"""AR model after VALL-E: the content as phones, no instruction, to the first codebook.

A voice prompt gives the voice: most clips begin with another of their speaker. No semantic tokens. After VoxInstruct,
section 5.2 (baselines), and arXiv 2301.02111, in miniature: timed as the embedded voice is.

Run: voxinstruct train configs/valle_small_ar.py --out runs/valle_ar
Hardware: two CPU cores.
Cost: 3,200 steps of 1,024 slots, about an hour.
Expect: `loss_acoustic` below the unigram entropy of the codes; more errors than the embedded voice (table 6: 26.2 %
against 3.0 % without semantic tokens).
Measured: not yet; the tests train it in miniature.
"""

from voxinstruct_jax.data.mixture import Kinds
from voxinstruct_jax.training.small import small_ar, small_data

experiment = small_ar(
    small_data(Kinds(transcript=1.0), prompt_ratio=0.8), steps=3200, text_form="content", semantic=False
)
