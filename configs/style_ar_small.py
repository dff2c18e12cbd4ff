"""AR model of the embedded voice, between its first and second stage: what descriptions ask for.

After PromptTTS (Guo et al. 2022), section 2.2: gender, pitch, energy and speed are read off the instruction, taught by
what is known of each clip. Text alone; speech is neither read nor predicted.
It starts from the weights of the stage before: `voxinstruct convert runs/pretrain_ar --out weights/pretrain_ar`.

Run: voxinstruct train configs/style_ar_small.py --out runs/style_ar --train.init-from weights/pretrain_ar
Hardware: one CPU core.
Cost: 2,500 steps of 64 instructions, twenty minutes; ten with `--no-durations`, which leaves out the text encoder.
Expect: accuracy_gender above .9, of pitch, energy and speed above .75: an instruction in five says nothing of them.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.training.small import small_style

experiment = small_style(steps=2500)
