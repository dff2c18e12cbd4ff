"""AR model of the embedded voice, between its first and second stage: what descriptions ask for.

After PromptTTS (Guo et al. 2022), section 2.2: gender, pitch, energy and speed are read off the instruction, taught by
what is known of each clip. Text alone; speech is neither read nor predicted.
It starts from the weights of the stage before: `voxinstruct convert runs/pretrain_ar --out weights/pretrain_ar`.

Run: voxinstruct train configs/style_ar_small.py --out runs/style_ar --train.init-from weights/pretrain_ar
Hardware: one CPU core.
Cost: 200 steps of 64 instructions, two minutes.
Expect: accuracy_gender above .8: an instruction in four says nothing of it.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.training.small import small_style

experiment = small_style(steps=200)
