import dataclasses
import zlib

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.data.durations import quoted
from voxinstruct_jax.data.manifest import Row
from voxinstruct_jax.data.prepare import Encoders, prepare
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer, content_rows
from voxinstruct_jax.vocabulary import Vocabulary

SAMPLE_RATE = 1000
HOP = 40
"""Samples a frame: 25 Hz."""


@dataclasses.dataclass(frozen=True)
class Letters:
    """One token a letter in two channels, and an end token."""

    channel_sizes: tuple[int, ...] = (200, 7)
    fingerprint: str = "letters"

    def encode(self, text: str) -> np.ndarray:
        codes = np.array([*(1 + ord(letter) % 190 for letter in text), 199], np.int32)
        return np.stack([codes, 1 + codes % 6], axis=1)


def noise_like_codes(samples: np.ndarray, count: int, size: int) -> np.ndarray:
    """Codes that depend on the samples and nothing else."""
    frames = -(-len(samples) // HOP)
    seed = zlib.crc32(samples.tobytes())
    return np.random.default_rng(seed).integers(0, size, (count, frames))


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(num_semantic=20, codebook_size=64, num_codebooks=3)


@pytest.fixture(scope="session")
def letters() -> type[Letters]:
    return Letters


@pytest.fixture(scope="session")
def encoders() -> Encoders:
    return make_encoders()


def make_encoders() -> Encoders:
    return Encoders(
        acoustic=lambda samples: noise_like_codes(samples, 3, 64),
        semantic=lambda samples: np.repeat(noise_like_codes(samples, 1, 20)[0], 2)[: -(-len(samples) // HOP)],
        tokenizer=Letters(),
        sample_rate=SAMPLE_RATE,
        frame_rate=SAMPLE_RATE / HOP,
        fingerprints={"codec": "codec-1", "units": "units-1"},
    )


@pytest.fixture(scope="session")
def timed_encoders(encoders) -> Encoders:
    """With durations: characters share the time evenly; what is left over goes to the closing quote."""
    tokenizer = PronunciationTokenizer()

    def durations(samples, transcript):
        half_frames = 2 * -(-len(samples) // HOP)
        found = np.full(len(content_rows(tokenizer.encode(quoted(transcript)))) + 2, 0)
        found += half_frames // len(found)
        found[-1] += half_frames - found.sum()
        return found if found[0] else None

    return dataclasses.replace(encoders, tokenizer=tokenizer, durations=durations)


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> list[Row]:
    """Thirty clips of .3 to 2 s."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    made = []
    for number in range(30):
        path = folder / f"{number}.wav"
        soundfile.write(path, random.uniform(-0.5, 0.5, random.integers(300, 2000)), SAMPLE_RATE)
        instructions = tuple(f"Say {'x' * k} “clip {number}”" for k in range(number % 3))
        made.append(
            Row(
                id=f"clip-{number}",
                audio=str(path),
                language=("en", "zh")[number % 2],
                transcript=f"clip {number}",
                instructions=instructions,
                speaker=f"speaker {number % 4}",
                attributes={"gender": "female", "stress": [0]} if number % 5 == 0 else {},
            )
        )
    return made


@pytest.fixture(scope="session")
def reader(tmp_path_factory, rows, encoders):
    return prepare(rows, tmp_path_factory.mktemp("shards"), encoders, shard_size=8, progress=False)


@pytest.fixture(scope="session")
def timed_reader(tmp_path_factory, rows, timed_encoders):
    """The same clips with the durations of their characters; those too short for their words are left out."""
    return prepare(rows, tmp_path_factory.mktemp("timed"), timed_encoders, shard_size=8, progress=False)
