"""NAR model after VALL-E: further codebooks from the first and the content as phones.

A voice prompt gives the voice: most clips begin with another of their speaker. No semantic tokens. After VoxInstruct,
section 5.2 (baselines), and arXiv 2301.02111, in miniature: timed as the embedded voice is.

Run: voxinstruct train configs/valle_small_nar.py --out runs/valle_nar
Hardware: two CPU cores.
Cost: 3,000 steps of 1,024 slots, about an hour.
Expect: accuracy on masked places of the second codebook far above the share of its commonest code.
Measured: not yet; the tests train it in miniature.
"""

from voxinstruct_jax.data.mixture import Kinds
from voxinstruct_jax.training.small import small_data, small_nar

experiment = small_nar(
    small_data(Kinds(transcript=1.0), prompt_ratio=0.8, row_slots=512), steps=3000, text_form="content", semantic=False
)
