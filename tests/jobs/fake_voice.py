"""A voice without a model, for jobs; a module of its own, so that other processes can import it."""

import dataclasses
import itertools

import numpy as np

from voxinstruct_jax.config import VoxError
from voxinstruct_jax.utterance import Audio, Utterance

SAMPLE_RATE = 8000


class FakeVoice:
    """Speaks a tone of the seed's pitch; `faults` maps an instruction to what happens instead."""

    def __init__(self, name="fake 1", faults=None, samples=None, finish=lambda utterance: "stop", ahead=1):
        self.name, self.faults, self.samples, self.finish, self.ahead = name, faults or {}, samples, finish, ahead
        self.spoken = []

    def synthesize(self, instruction, **options):
        utterance = Utterance(instruction=instruction, **options)
        self.spoken.append(utterance)
        if instruction in self.faults:
            raise self.faults[instruction]
        duration = utterance.max_duration_s or 0.3 + 0.1 * (utterance.seed % 5)
        tone = 0.5 * np.sin(np.arange(int(duration * SAMPLE_RATE)) * (1 + utterance.seed % 7) / 10)
        return Audio(
            samples=(tone if self.samples is None else self.samples).astype(np.float32),
            sample_rate=SAMPLE_RATE,
            semantic=np.zeros(3, np.int32),
            acoustic=np.zeros((2, 4), np.int32),
            language=utterance.language or "en",
            finish_reason=self.finish(utterance),
            seed=utterance.seed,
            notes=("a note",),
            model=self.name,
        )

    def synthesize_many(self, utterances):
        """Draws `ahead` utterances at a time and gives each such batch back last first."""
        drawn = enumerate(utterances)
        while batch := list(itertools.islice(drawn, self.ahead)):
            for place, utterance in reversed(batch):
                fields = {item.name: getattr(utterance, item.name) for item in dataclasses.fields(utterance)}
                try:
                    yield place, self.synthesize(**fields)
                except VoxError as error:
                    yield place, error
