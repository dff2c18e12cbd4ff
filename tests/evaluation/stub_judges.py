"""Judges that need no weights: they know a clip by its length, and say what the test wrote down for it."""

import json
import os
import time
from pathlib import Path


class Parrot:
    """Hears what `VOX_TEST_HEARD` (a JSON file: seconds to text) says; slowly, where the test wants to kill it."""

    fingerprint = "parrot/1"

    def transcribe(self, samples, sample_rate, language=None):
        time.sleep(float(os.environ.get("VOX_TEST_PACE", "0")))
        heard = json.loads(Path(os.environ["VOX_TEST_HEARD"]).read_text("utf-8"))
        return heard[f"{len(samples) / sample_rate:.2f}"]


class Loudness:
    """A stand-in for a MOS network: the peak, as a score."""

    name, sample_rate = "loudness/1", 8000

    def measure(self, samples):
        return 1 + 4 * float(abs(samples).max())


class Broken:
    """A judge with a fault of its own."""

    name, sample_rate = "broken/1", 16_000

    def measure(self, samples):
        raise ZeroDivisionError("oh no")


class Mute:
    """Hears nothing."""

    fingerprint = "mute/1"

    def transcribe(self, samples, sample_rate, language=None):
        return ""


class Linguist:
    """Takes what the parrot hears for Mandarin where it holds a Chinese character."""

    fingerprint = "linguist/1"

    def detect_language(self, samples, sample_rate):
        heard = Parrot().transcribe(samples, sample_rate)
        return ("zh" if any("\u4e00" <= character <= "\u9fff" for character in heard) else "en"), 0.9


class Classifier:
    """Three classes of sound: their shares follow from how loud it is."""

    name, sample_rate = "classifier/1", 16_000

    def classify(self, samples):
        peak = float(abs(samples).max())
        return [peak, 1 - peak, 0.2]


class Embedder:
    """A vector that says how loud and how long a sound is."""

    name, sample_rate = "embedder/1", 16_000

    def embed(self, samples):
        return [float(abs(samples).max()), len(samples) / 16_000, 1.0]
