"""Which clips training meets, and in what order: corpora, kinds of task and languages by weight.

The clips that share corpus, kind and language are a stream: its passes follow one another without end, each in an order
of its own. `make_streams` says how much of training each stream is; `draw` gives the clips of any block of training,
a pure function of its arguments. A stream advances at its own pace: a small one comes round more often.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.shards import ShardReader

__all__ = ["KINDS", "Corpus", "Draw", "Kinds", "Mixture", "Stream", "draw", "draw_variants", "make_streams"]

KINDS = ("transcript", "instruction", "fine_grained")
"""Stages of data: the quoted transcript alone; a described instruction; one for a clip whose stressed words are known.

Source: VoxInstruct, section 5.1."""
ANY_KIND = ""
SHARE_UNIT = 2**40
"""Shares are whole numbers of this part, so that every host counts alike."""
CHOSEN_RECORDS = 2**18
"""Looked at together."""
FITTING_ROUNDS = 2000
SHUFFLE_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One of several folders that `prepare` wrote."""

    shards: str
    weight: float | None = None
    """Share of all clips that training meets, relative to the other corpora; None = by its number of clips."""

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight <= 0:
            raise ConfigError(f"corpus {self.shards}: weight {self.weight} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """Weight of each kind of task. All 0: as they come, see `BatchConfig.description_free_ratio`."""

    transcript: float = 0.0
    instruction: float = 0.0
    fine_grained: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if weight < 0:
                raise ConfigError(f"kinds.{name}: {weight} is below 0")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What training is made of. By default the clips of one folder, each once a pass."""

    corpora: tuple[Corpus, ...] = ()
    """Several folders, in place of the one of `shards`."""
    kinds: Kinds = Kinds()
    language_temperature: float = 1.0
    """A language of n clips gets a share by n^(1/temperature): 1 = as in the data, large = all alike."""
    language_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Explicit shares of the languages, relative to each other; every language of the data has one."""

    def __post_init__(self) -> None:
        if self.language_temperature <= 0:
            raise ConfigError(f"language_temperature: {self.language_temperature} must be above 0")
        if any(weight <= 0 for weight in self.language_weights.values()):
            raise ConfigError("language_weights: give each language a weight above 0")
        if len({corpus.weight is None for corpus in self.corpora}) > 1:
            raise ConfigError("corpora: give all of them a weight, or none")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Clips that are drawn alike."""

    corpus: int
    """Number of the folder."""
    kind: str
    """One of `KINDS`; empty = any."""
    language: str
    """Empty = any."""
    members: Int32[np.ndarray, " member"] | None
    """Records of the folder; None = all."""
    size: int
    """Number of members."""
    share: int
    """Of all clips that training meets, in parts of `SHARE_UNIT`."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Clips in the order in which training meets them."""

    streams: Int32[np.ndarray, " clip"]
    records: Int64[np.ndarray, " clip"]
    """Record within the stream's folder."""


def make_streams(readers: Sequence[ShardReader], mixture: Mixture) -> tuple[Stream, ...]:
    """Divides the data into streams and settles their shares.

    Shares start from the numbers of clips and are scaled until those of corpora, kinds and languages that were asked
    for hold at once (iterative proportional fitting, Deming and Stephan 1940).

    Raises:
        InputError: A weighted kind or language has no clips, or a language of the data has no weight.
        ConfigError: The shares asked for exclude each other.
    """
    kinds = {name: weight for name, weight in dataclasses.asdict(mixture.kinds).items() if weight}
    by_language = mixture.language_temperature != 1 or bool(mixture.language_weights)
    found = []
    for corpus, reader in enumerate(readers):
        for kind in kinds or (ANY_KIND,):
            for language in reader.index.languages if by_language else ("",):
                members = _members(reader, kind, language)
                size = len(reader) if members is None else len(members)
                if size:
                    found.append(
                        Stream(corpus=corpus, kind=kind, language=language, members=members, size=size, share=0)
                    )
    weights = {corpus: item.weight for corpus, item in enumerate(mixture.corpora) if item.weight is not None}
    targets = [
        _target("corpora", [stream.corpus for stream in found], weights),
        _target("kinds", [stream.kind for stream in found], kinds),
        _target("languages", [stream.language for stream in found], _language_weights(readers, mixture)),
    ]
    shares = _fit(np.array([stream.size for stream in found], np.float64), [each for each in targets if each])
    return tuple(
        dataclasses.replace(stream, share=round(share * SHARE_UNIT))
        for stream, share in zip(found, shares.tolist(), strict=True)
    )


def draw(streams: Sequence[Stream], *, block: int, clips: int, seed: Sequence[int]) -> Draw:
    """Draws the clips of a block of training.

    Of `clips` x (block + 1) clips that training has met after a block, a stream of share s makes s, rounded; a block
    has `clips` clips up to that rounding. Clips of a stream keep their order, streams are interleaved evenly.

    Args:
        streams: From `make_streams`.
        block: From 0.
        clips: Clips a block, 1 or more.
        seed: Of the run, with what else tells this draw from others.
    """
    random = np.random.default_rng((*seed, 0, block))
    numbers, records, places = [], [], []
    for number, stream in enumerate(streams):
        first, last = (_rounded(clips * end * stream.share) for end in (block, block + 1))
        numbers.append(np.full(last - first, number, np.int32))
        records.append(_records(stream, first, last, (*seed, 1, number)))
        places.append((np.arange(last - first) + random.random(last - first)) / max(last - first, 1))
    order = np.argsort(np.concatenate(places), kind="stable")
    return Draw(streams=np.concatenate(numbers)[order], records=np.concatenate(records)[order])


def _rounded(parts: int) -> int:
    return (parts + SHARE_UNIT // 2) // SHARE_UNIT


def _records(stream: Stream, first: int, last: int, seed: tuple[int, ...]) -> Int64[np.ndarray, " clip"]:
    """Members number `first` to `last` of an endless stream; each pass is another permutation, made place by place."""
    from grain.experimental import index_shuffle

    found = np.zeros(last - first, np.int64)
    for epoch in range(first // stream.size, -(-last // stream.size)):
        key = int(np.random.SeedSequence((*seed, epoch)).generate_state(1)[0])
        start, end = max(first, epoch * stream.size), min(last, (epoch + 1) * stream.size)
        for number in range(start, end):
            place = number - epoch * stream.size
            found[number - first] = (
                index_shuffle(place, max_index=stream.size - 1, seed=key, rounds=SHUFFLE_ROUNDS)
                if stream.size > 1
                else 0
            )
    return found if stream.members is None else stream.members[found].astype(np.int64)


def _members(reader: ShardReader, kind: str, language: str) -> Int32[np.ndarray, " member"] | None:
    if not language and kind not in ("instruction", "fine_grained"):
        return None
    found = [np.zeros(0, np.int32)]
    for first in range(0, len(reader), CHOSEN_RECORDS):  # a mask of all records would be larger than what is chosen
        records = np.arange(first, min(first + CHOSEN_RECORDS, len(reader)), dtype=np.int32)
        chosen = np.ones(len(records), bool)
        if kind in ("instruction", "fine_grained"):
            described = reader.lengths.num_variants_of(records) > 1
            chosen &= described & (reader.stressed[records] == (kind == "fine_grained"))
        if language:
            chosen &= reader.languages[records] == sorted(reader.index.languages).index(language)
        found.append(records[chosen])
    members = np.concatenate(found)
    return None if len(members) == len(reader) else members


def _language_weights(readers: Sequence[ShardReader], mixture: Mixture) -> dict[str, float]:
    if not mixture.language_weights and mixture.language_temperature == 1:
        return {}
    counts: dict[str, int] = {}
    for reader in readers:
        for name, count in reader.index.languages.items():
            counts[name] = counts.get(name, 0) + count
    if not mixture.language_weights:
        return {name: count ** (1 / mixture.language_temperature) for name, count in counts.items()}
    unweighted = sorted(counts.keys() - mixture.language_weights.keys())
    if unweighted:
        raise InputError(f"language_weights: the data has {', '.join(unweighted)} too; give every language a weight")
    return mixture.language_weights


def _target(
    what: str, values: Sequence[int | str], weights: Mapping[int, float] | Mapping[str, float]
) -> list[tuple[np.ndarray, float]]:
    """Streams of each value and the share that they make together; empty if no shares are asked for."""
    total = sum(weights.values())
    found = []
    for value, weight in weights.items():
        mask = np.array([each == value for each in values], bool)
        if not mask.any():
            raise InputError(f"{what}: {value} has a weight, but no clip is of it; leave it out or add data")
        found.append((mask, weight / total))
    return found


def _fit(
    sizes: Float[np.ndarray, " stream"], targets: list[list[tuple[np.ndarray, float]]]
) -> Float[np.ndarray, " stream"]:
    shares = sizes / sizes.sum()
    for _ in range(FITTING_ROUNDS):
        for target in targets:
            for mask, share in target:
                shares[mask] *= share / max(shares[mask].sum(), 1e-300)
        if all(abs(shares[mask].sum() - share) < 1e-9 for target in targets for mask, share in target):
            return shares
    raise ConfigError("mixture: the weights of corpora, kinds and languages exclude each other; leave some of them out")


def draw_variants(
    num_variants: Int[np.ndarray, " clip"],
    kinds: Sequence[str],
    random: np.random.Generator,
    *,
    description_free_ratio: float,
) -> Int64[np.ndarray, " clip"]:
    """Draws which instruction each clip is trained on.

    Args:
        num_variants: Variants of each clip's record, at least 1; the last one is the quoted transcript.
        kinds: Of each clip's stream.
        random: Moved on.
        description_free_ratio: Probability of the quoted transcript where the kind is any and there are others.

    Source:
        VoxInstruct, section 5.1; release, utils/dataset.py (`description_free_g_ratio`).
    """
    free = np.array([{ANY_KIND: description_free_ratio, "transcript": 1.0}.get(kind, 0.0) for kind in kinds])
    quoted = (random.random(len(num_variants)) < free) | (num_variants == 1)
    described = np.floor(random.random(len(num_variants)) * (num_variants - 1)).astype(np.int64)
    return np.where(quoted, num_variants - 1, described)
