"""NAR model after Salle: further codebooks from the first, style prompt and content as phones.

The instruction is taken apart: what is outside of the quotes, then what is in them; no semantic tokens. After
VoxInstruct, section 5.2 (baselines), and arXiv 2308.14430, in miniature: timed as the embedded voice is.

Run: voxinstruct train configs/salle_small_nar.py --out runs/salle_nar
Hardware: two CPU cores.
Cost: 3,000 steps of 1,024 slots, about an hour.
Expect: accuracy on masked places of the second codebook far above the share of its commonest code.
Measured: not yet; the tests train it in miniature.
"""

from voxinstruct_jax.training.small import INSTRUCT, small_data, small_nar

experiment = small_nar(small_data(INSTRUCT, row_slots=512), steps=3000, text_form="style_and_content", semantic=False)
