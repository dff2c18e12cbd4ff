import numpy as np
import pytest

from voxinstruct_jax.voice import Audio

SAMPLE_RATE = 1000


class FakeVoice:
    """Speaks a tone of the seed's pitch; `faults` maps an instruction to what happens instead."""

    def __init__(self, name="fake 1", faults=None, samples=None):
        self.name, self.faults, self.samples = name, faults or {}, samples
        self.spoken = []

    def synthesize(self, instruction, *, seed=0, language=None, max_duration_s=None, **conditions):
        self.spoken.append((instruction, seed, conditions))
        if instruction in self.faults:
            raise self.faults[instruction]
        duration = max_duration_s or 0.5
        tone = 0.5 * np.sin(np.arange(int(duration * SAMPLE_RATE)) * (1 + seed % 7) / 10)
        return Audio(
            samples=(tone if self.samples is None else self.samples).astype(np.float32),
            sample_rate=SAMPLE_RATE,
            semantic=np.zeros(3, np.int32),
            acoustic=np.zeros((2, 4), np.int32),
            language=language or "en",
            finish_reason="stop",
            seed=seed,
            notes=("a note",),
            model=self.name,
        )


@pytest.fixture
def fake_voice():
    return FakeVoice
