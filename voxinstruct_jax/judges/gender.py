"""Gender as a listener would guess it: a linear probe on the speaker embedding."""

import functools
import json
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.judges.judge import Clip, Measurement
from voxinstruct_jax.judges.speaker import EMBEDDING_NAME, embed_speaker

__all__ = ["GenderJudge", "female_probability"]


@dataclass(frozen=True)
class GenderJudge:
    """Logistic regression; `launch/fit_gender_probe.py` fits it."""

    attribute: str = "gender"
    unit: str = ""

    @property
    def name(self) -> str:
        """Embedding and version of the probe."""
        return f"{EMBEDDING_NAME}/{_probe()[2]}"

    def measure(self, clip: Clip) -> Measurement | None:
        """None where less than 0.3 s is loud enough to be speech."""
        embedding = embed_speaker(clip.samples, clip.sample_rate)
        if embedding is None:
            return None
        female = female_probability(embedding)
        return Measurement(label="female" if female >= 0.5 else "male", confidence=round(max(female, 1 - female), 3))


def female_probability(embedding: Float[np.ndarray, "256"]) -> float:
    """Probability that the voice is a woman's."""
    weights, bias, _ = _probe()
    return float(1 / (1 + np.exp(-(embedding @ weights + bias))))


@functools.cache
def _probe() -> tuple[Float[np.ndarray, "256"], float, str]:
    stored = json.loads((resources.files("voxinstruct_jax.judges") / "weights" / "gender.json").read_text("utf-8"))
    return np.array(stored["weights"], np.float32), stored["bias"], stored["version"]
