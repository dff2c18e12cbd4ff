"""AR model after PromptTTS: a vector of the style prompt on the content's phones, to the first codebook.

The content's phones and the style prompt do not see each other; the mean of the style is added to the phones, which
are then given their durations. After VoxInstruct, section 5.2 (baselines), and arXiv 2211.12171; a language model of
codes stands for its mel decoder.

Run: voxinstruct train configs/prompttts_small_ar.py --out runs/prompttts_ar
Hardware: two CPU cores.
Cost: 3,200 steps of 1,024 slots, about an hour.
Expect: `loss_acoustic` below the unigram entropy of the codes; more errors than the embedded voice (table 6: 26.2 %
against 3.0 % without semantic tokens).
Measured: not yet; the tests train it in miniature.
"""

from voxinstruct_jax.training.small import INSTRUCT, small_ar, small_data

experiment = small_ar(small_data(INSTRUCT), steps=3200, text_form="style_vector_and_content", semantic=False)
