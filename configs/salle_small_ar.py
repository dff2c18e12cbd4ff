"""AR model after Salle: style prompt, then the content as phones, to the first codebook.

The instruction is taken apart: what is outside of the quotes, then what is in them; no semantic tokens. After
VoxInstruct, section 5.2 (baselines), and arXiv 2308.14430, in miniature: timed as the embedded voice is.

Run: voxinstruct train configs/salle_small_ar.py --out runs/salle_ar
Hardware: two CPU cores.
Cost: 3,200 steps of 1,024 slots, about an hour.
Expect: `loss_acoustic` below the unigram entropy of the codes; more errors than the embedded voice (table 6: 26.2 %
against 3.0 % without semantic tokens).
Measured: not yet; the tests train it in miniature.
"""

from voxinstruct_jax.training.small import INSTRUCT, small_ar, small_data

experiment = small_ar(small_data(INSTRUCT), steps=3200, text_form="style_and_content", semantic=False)
