"""The two schools on equal data and an equal budget: the codec language model against flows on its codec's latents.

All train from nothing on the same speech with the same number of operations, read instructions through a text encoder
of their own, and share the codec's decoder. InstructAudio and UNISON are told the length by one line from syllables to
seconds, Grad-TTS and the AR model say it. The hybrid has the AR model of the codec language model, and its flow is paid
by what that leaves. The embedded voice stands last: the same codec language model with more training.
`voxinstruct` trains and converts them one by one, `benchmarks/train_baselines.py` all of them. A further system is a
further row.

Run: voxinstruct compare configs/compare_small.py --out runs/compare_small --metrics wer,pinyin,mos,rtf
Hardware: two CPU cores; extra judges.
Cost: 24 sentences a system, some minutes; training hours.
Expect: at this budget the two systems with an AR model to be understood, the flows alone not.
Measured: 2026-11-23 at 8e13 operations: docs/baselines.md.
"""

from voxinstruct_jax.evaluation.experiment import CompareExperiment, Speaking

CODEC_LM = "voices/codec_lm_small"

experiment = CompareExperiment(
    systems=(
        Speaking(
            name="codec-lm",
            voice=CODEC_LM,
            trained_by=("configs/instruct_ar_small.py", "configs/instruct_nar_small.py"),
        ),
        Speaking(
            name="lm-flow",
            voice="voices/lm_flow_small",
            trained_by=("configs/flow_decoder_small.py",),
            ar_of=CODEC_LM,
        ),
        Speaking(
            name="instructaudio",
            voice="voices/instructaudio_small",
            trained_by=("configs/instructaudio_codec_small.py",),
        ),
        Speaking(name="unison", voice="voices/unison_small", trained_by=("configs/unison_codec_small.py",)),
        Speaking(name="grad-tts", voice="voices/grad_tts_small", trained_by=("configs/grad_tts_codec_small.py",)),
        Speaking(name="embedded"),
    ),
    requests="benchmarks/unseen_requests.jsonl",
    limit=12,
)
