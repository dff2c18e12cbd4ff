"""When each word of a transcript is spoken in a clip, by forced alignment of its phones.

The phone model of a voice's `units/` folder and Whisper's encoder, which feeds it, find the phones; words are those of
`text.words.split_words`. Times are whole features, 20 ms. Read `open_word_aligner`, then `WordAligner.word_times`.
"""

import dataclasses
import difflib
import itertools
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.audio.phone_model import PhoneModel, load_phone_model
from voxinstruct_jax.audio.semantic import FeatureSource, load_units
from voxinstruct_jax.audio.waveform import resample
from voxinstruct_jax.audio.whisper import load_whisper_encoder
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.durations import character_durations, quoted
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.normalizer import normalize
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.text.words import Word, split_words

__all__ = ["WordAligner", "WordTimes", "open_word_aligner"]

FEATURE_SAMPLE_RATE = 16_000
FEATURE_S = 0.020
_QUOTES = re.compile(r"[\"“”„‟«»「」『』]")

WordTimes = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordAligner:
    """An opened aligner; weights are loaded once, calls share nothing."""

    phones: PhoneModel
    source: FeatureSource
    """Of the features that `phones` was fitted on."""
    tokenizer: PronunciationTokenizer

    def word_times(self, samples: Float[np.ndarray, " sample"], sample_rate: int, transcript: str) -> WordTimes | None:
        """Finds start and end of each word of `text.words.split_words(transcript)`.

        Args:
            samples: Of one clip, mono.
            sample_rate: Hz.
            transcript: All that is said, in order, as it is written.

        Returns:
            One (start, end) a word, in seconds, in order and without overlap. A word without a reading (a script that
            the tokenizer does not know) has start = end. None where nothing can be read, or there are more phones than
            the clip has time for.
        """
        text = _unquoted(transcript)
        content = spoken_content(normalize(quoted(text))).text
        if content is None:
            return None
        features = self.source.features(resample(samples, sample_rate, FEATURE_SAMPLE_RATE))
        durations = character_durations(self.phones, self.tokenizer, features, text, -(-len(features) // 2))
        if durations is None:
            return None
        ends_s = np.minimum(np.cumsum(durations) * FEATURE_S, len(samples) / sample_rate)
        return _word_times(_spoken_spans(transcript, content), durations, ends_s)

    def word_phones(self, transcript: str) -> tuple[tuple[str, ...], ...]:
        """Lists the phones of each word of `text.words.split_words(transcript)`, as `SpokenPhone.label` has them."""
        asked = normalize(quoted(_unquoted(transcript)))
        content = spoken_content(asked)
        if content.text is None:
            return ((),) * len(split_words(transcript))
        phones = [phone for phone in self.tokenizer.spoken_phones(asked) if not phone.optional]
        return tuple(
            tuple(phone.label for phone in phones if begin <= phone.row - content.start < end)
            for begin, end in _spoken_spans(transcript, content.text)
        )


def open_word_aligner(voice_folder: Path) -> WordAligner:
    """Opens the aligner of a voice.

    Args:
        voice_folder: Its `units/` folder was fitted with phones, as that of the embedded voice.

    Raises:
        InputError: The units are missing, damaged, without phones or fitted on HuBERT, or the `asr` extra is missing.
    """
    folder = voice_folder / "units"
    phones, units = load_phone_model(folder), load_units(folder)
    if phones is None or not units.source.startswith("whisper"):
        raise InputError(f"{folder}: holds no phone model on Whisper features; take the embedded voice for word times")
    return WordAligner(phones=phones, source=load_whisper_encoder(units.layer), tokenizer=PronunciationTokenizer())


def _unquoted(transcript: str) -> str:
    """Without marks of speech, which would end the content when the whole is quoted."""
    return _QUOTES.sub(" ", transcript)


def _word_times(
    spans: list[tuple[int, int]], durations: Int[np.ndarray, " character"], ends_s: Float[np.ndarray, " character"]
) -> WordTimes:
    """Times of spans of characters; `durations` and `ends_s` begin with the silence before the first character."""
    times, last_s = [], 0.0
    for begin, end in spans:
        spoken = np.flatnonzero(durations[begin + 1 : end + 1]) + begin + 1
        if len(spoken):
            start_s, last_s = float(ends_s[spoken[0] - 1]), float(ends_s[spoken[-1]])
            times.append((start_s, last_s))
        else:
            times.append((last_s, last_s))
    return tuple(times)


def _spoken_spans(written: str, spoken: str) -> list[tuple[int, int]]:
    """Where each word of a written text stands in the text as it is spoken ("3" in "three").

    Words that both have anchor the rest; between anchors the spoken words are dealt out in order. Several spoken words
    ("twenty five") make one span; a written word that is not spoken gets an empty one.
    """
    before, after = split_words(written), split_words(spoken)
    spans: list[tuple[int, int]] = []
    matcher = difflib.SequenceMatcher(None, [w.text for w in before], [w.text for w in after], autojunk=False)
    for _, i, j, k, m in matcher.get_opcodes():
        spans = _dealt(spans, after[k:m], j - i)
    return spans


def _dealt(spans: list[tuple[int, int]], words: list[Word], count: int) -> list[tuple[int, int]]:
    """Appends `count` spans over these words; with a count of 0 the words belong to the span before them."""
    last = spans[-1][1] if spans else 0
    if not count:
        return [*spans[:-1], (spans[-1][0], words[-1].end)] if spans else []
    cuts = [len(words) * place // count for place in range(count + 1)]
    found = [words[begin:end] for begin, end in itertools.pairwise(cuts)]
    return [*spans, *((part[0].start, part[-1].end) if part else (last, last) for part in found)]
