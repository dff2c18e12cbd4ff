"""How long each character of a transcript is spoken in a clip, by forced alignment."""

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.audio.phone_model import PhoneModel
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

__all__ = ["character_durations", "quoted"]


def quoted(transcript: str) -> str:
    """The transcript as an instruction that asks for nothing but its words."""
    return f'"{transcript}"'


def character_durations(
    model: PhoneModel,
    tokenizer: PronunciationTokenizer,
    features: Float[np.ndarray, "feature_frame dim"],
    transcript: str,
    num_frames: int,
) -> Int[np.ndarray, " character"] | None:
    """Aligns a clip with its transcript.

    Args:
        model: Fitted on the same features.
        tokenizer: Gives the phones of the transcript; those that the model does not know last no time.
        features: Of the clip, two a codec frame.
        transcript: What is said.
        num_frames: Codec frames of the clip.

    Returns:
        Half frames of the opening quote (the silence before), of each character of the content, and of the closing
        quote; their sum is `2 * num_frames`. None where the transcript has no phones or more than fit the time.
    """
    numbers = {label: number for number, label in enumerate(model.labels)}
    phones = [phone for phone in tokenizer.spoken_phones(quoted(transcript)) if phone.base_label in numbers]
    if all(phone.optional for phone in phones):
        return None
    labels = np.array([numbers[phone.base_label] for phone in phones])
    path = model.align(features, labels, np.array([phone.optional for phone in phones]))
    if path is None:
        return None
    rows = np.array([phone.row for phone in phones])
    rows -= rows[0]
    counts = np.bincount(rows[path], minlength=rows[-1] + 1)
    counts[-1] += 2 * num_frames - len(features)  # the codec rounds up to whole frames
    return counts if counts[-1] >= 0 else None
