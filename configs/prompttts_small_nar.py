"""NAR model after PromptTTS: further codebooks from the first, a vector of style and the content's phones.

The content's phones and the style prompt do not see each other; the mean of the style is added to the phones, which
are then given their durations. After VoxInstruct, section 5.2 (baselines), and arXiv 2211.12171; a language model of
codes stands for its mel decoder.

Run: voxinstruct train configs/prompttts_small_nar.py --out runs/prompttts_nar
Hardware: two CPU cores.
Cost: 3,000 steps of 1,024 slots, about an hour.
Expect: accuracy on masked places of the second codebook far above the share of its commonest code.
Measured: not yet; the tests train it in miniature.
"""

from voxinstruct_jax.training.small import INSTRUCT, small_data, small_nar

experiment = small_nar(
    small_data(INSTRUCT, row_slots=512), steps=3000, text_form="style_vector_and_content", semantic=False
)
