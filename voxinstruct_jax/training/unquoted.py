"""Trains what tells the words to be spoken in requests without quotes, and prints how many of others it gets right.

Run: `python -m voxinstruct_jax.training.unquoted --corpus corpus/train --out unquoted.npz`. It takes half a
minute of two cores. The file it writes is what `text/data` ships. Read `train` first.
"""

import argparse
import logging
import pathlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int8

from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.lexicon import REQUESTS_FILE, read_data
from voxinstruct_jax.text.normalizer import has_han
from voxinstruct_jax.text.sample_requests import SampleRequest, read_samples
from voxinstruct_jax.text.unquoted import NUM_CLUES, Clues, read_clues, seam_pairs, unquoted_content
from voxinstruct_jax.text.words import letters

__all__ = ["accuracy", "train"]

_LOG = logging.getLogger(__name__)

MAX_PIECES, MAX_CLUES = 24, 160
"""Of a request, and of a piece: longer requests are left out, and further clues."""
COPIES, JOINED = 4, (1, 1, 1, 2, 2, 3)
"""Copies of each request with other words in place of its own, and of how many sentences: how it is put does not tell
what is said."""
ENDED_ALIKE = 0.7
"""Share of the copies whose words end as the request's own do, with a mark or without one."""
EVERY = 12
"""One clip in so many of the corpus gives an instruction and a sentence: its grammar is soon learnt."""
SEEN = 0.7
"""Share of the clues that are seen in each step, so that each has to tell by itself."""
LEAST = 20
"""Examples that a clue is met in at least; rarer ones tell nothing."""
BATCH = 64
LEVELS = 63
"""Of a weight's size in the file: as many requests are read right as with all of its digits."""
LEARNING_RATE, WEIGHT_DECAY = 0.03, 0.1


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Requests as arrays, padded; see `unquoted.Clues`. Clues count from 0, `NUM_CLUES` stands for none."""

    inside: Int[np.ndarray, "request piece clue"]
    first: Int[np.ndarray, "request piece first_clue"]
    last: Int[np.ndarray, "request piece last_clue"]
    pairs: Int[np.ndarray, "request piece piece"]
    right: Bool[np.ndarray, "request piece piece"]
    possible: Bool[np.ndarray, "request piece piece"]


def train(
    requests: Sequence[SampleRequest], quoted: Sequence[tuple[str, str]], *, num_epochs: int, seed: int = 0
) -> Float[np.ndarray, " clue"]:
    """Makes the stretch that is spoken the likeliest one of each request.

    Args:
        requests: To learn from.
        quoted: Instructions that quote their words, and these words: they are read without the quotes, and the words
            are put into copies of `requests`.
        num_epochs: Passes over them and their copies.
        seed: Of the copies, the order and the clues that are seen.

    Returns:
        What each clue speaks for, for `unquoted_content`.
    """
    draw = random.Random(seed)
    spoken = {is_han: [words for _, words in quoted if has_han(words) == is_han] for is_han in (False, True)}
    copies = [copy for request in requests for copy in _copies(request, spoken[has_han(request.words)], draw)]
    further = [request for each in quoted if (request := _unquoted(*each)) is not None]
    alone = [SampleRequest(before="", words=each.words, after="") for each in [*requests, *copies[::2]]]
    examples = _examples([*requests, *copies, *further, *alone])
    _LOG.info("%d examples of %d requests", len(examples.right), len(requests))
    return _fit(examples, num_epochs, seed)


def accuracy(weights: Float[np.ndarray, " clue"], requests: Iterable[SampleRequest]) -> tuple[int, int]:
    """How many requests are read right, and of how many."""
    right = [_same(unquoted_content(request.instruction, weights).text, request) for request in requests]
    return sum(right), len(right)


def _of_corpus(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Instructions of a corpus and their words."""
    reader = ShardReader(folder)
    examples = [reader[index] for index in range(0, len(reader), EVERY)]
    return [(example.instructions[0], example.transcript) for example in examples]


def _same(found: str | None, request: SampleRequest) -> bool:
    return letters(request.instruction if found is None else found) == letters(request.words)


def _copies(request: SampleRequest, spoken: Sequence[str], draw: random.Random) -> list[SampleRequest]:
    """The request with other words in its script, if there are any."""
    copies = []
    for _ in range(COPIES if spoken else 0):
        words = ("" if has_han(request.words) else " ").join(draw.choices(spoken, k=draw.choice(JOINED)))
        ending = request.words[-1]
        if draw.random() < ENDED_ALIKE:
            words = words.rstrip("。.!！?？") + ("" if ending.isalnum() else ending)
        copies.append(SampleRequest(before=request.before, words=words, after=request.after))
    return copies


def _unquoted(instruction: str, words: str) -> SampleRequest | None:
    """The request without its quotes; None if it quotes something else."""
    found = spoken_content(instruction)
    if found.text != words:
        return None
    return SampleRequest(before=instruction[: found.start - 1], words=words, after=instruction[found.end + 1 :])


def _examples(requests: Sequence[SampleRequest]) -> Examples:
    """Those of the requests whose words lie between two seams."""
    rows = [
        (clues, right)
        for request in requests
        if (right := _right(request, clues := read_clues(request.instruction))).any()
    ]
    rows = [(clues, right) for clues, right in rows if len(clues.pieces.spans) <= MAX_PIECES]
    count = len(rows)
    pairs = np.full((count, MAX_PIECES, MAX_PIECES), NUM_CLUES, np.int32)
    right, possible = np.zeros(pairs.shape, bool), np.zeros(pairs.shape, bool)
    for row, (clues, is_right) in enumerate(rows):
        pieces = len(is_right)
        pairs[row, :pieces, :pieces] = seam_pairs(clues.pieces)
        right[row, :pieces, :pieces] = is_right
        possible[row, :pieces, :pieces] = np.triu(np.ones_like(is_right))
    return Examples(
        inside=_stacked([clues.inside for clues, _ in rows], MAX_CLUES),
        first=_stacked([clues.first for clues, _ in rows], max(len(ids) for clues, _ in rows for ids in clues.first)),
        last=_stacked([clues.last for clues, _ in rows], max(len(ids) for clues, _ in rows for ids in clues.last)),
        pairs=pairs,
        right=right,
        possible=possible,
    )


def _right(request: SampleRequest, clues: Clues) -> Bool[np.ndarray, "piece piece"]:
    """Which stretches hold the words and nothing else but marks."""
    words, text = letters(request.words), request.instruction
    count = len(clues.pieces.spans)
    right = np.zeros((count, count), bool)
    for first in range(count):
        for last in range(first, count):
            right[first, last] = letters(text[clues.pieces.spans[first][0] : clues.pieces.spans[last][1]]) == words
    return right


def _stacked(rows: Sequence[Sequence[Int[np.ndarray, " _"]]], width: int) -> Int[np.ndarray, "request piece clue"]:
    stacked = np.full((len(rows), MAX_PIECES, width), NUM_CLUES, np.int32)
    for row, pieces in enumerate(rows):
        for piece, ids in enumerate(pieces):
            stacked[row, piece, : min(len(ids), width)] = ids[:width]
    return stacked


def _loss(
    weights: Float[Array, " clue"], known: Bool[Array, " clue"], batch: Sequence[Array], key: Array
) -> Float[Array, ""]:
    inside, first, last, pairs, right, possible = batch
    seen = jnp.append(known * weights * jax.random.bernoulli(key, SEEN, weights.shape) / SEEN, 0.0)
    told, begins, ends = (
        seen[ids].sum(-1) / jnp.maximum((ids < NUM_CLUES).sum(-1), 1) ** 0.5 for ids in (inside, first, last)
    )
    passed = jnp.pad(jnp.cumsum(told, axis=1), ((0, 0), (1, 0)))
    logits = passed[:, None, 1:] - passed[:, :-1, None] + seen[pairs]
    logits += begins[:, :, None] + ends[:, None, :]
    logits = jnp.where(possible, logits, -jnp.inf).reshape(len(inside), -1)
    wanted = jnp.where(right.reshape(logits.shape), logits, -jnp.inf)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(wanted, axis=1))


def _fit(examples: Examples, num_epochs: int, seed: int) -> Float[np.ndarray, " clue"]:
    columns = [examples.inside, examples.first, examples.last, examples.pairs, examples.right, examples.possible]
    batches = len(examples.right) // BATCH
    known = jnp.asarray(_met(examples) >= LEAST)
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, batches * num_epochs), weight_decay=WEIGHT_DECAY)
    weights = jnp.zeros(NUM_CLUES)
    state = optimizer.init(weights)

    @jax.jit
    def step(weights: Any, state: Any, batch: Sequence[Array], key: Array) -> tuple[Any, Any, Array]:
        loss, gradient = jax.value_and_grad(_loss)(weights, known, batch, key)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    order = np.random.default_rng(seed)
    for epoch in range(num_epochs):
        losses = []
        shuffled = order.permutation(len(examples.right))[: batches * BATCH]
        for at, rows in enumerate(np.split(shuffled, batches)):
            key = jax.random.fold_in(jax.random.key(seed), epoch * batches + at)
            weights, state, loss = step(weights, state, [column[rows] for column in columns], key)
            losses.append(loss)
        _LOG.info("epoch %d: loss %.4f", epoch + 1, float(jnp.stack(losses).mean()))
    return np.asarray(weights * known)


def _met(examples: Examples) -> Int[np.ndarray, " clue"]:
    """In how many requests each clue is met."""
    met = np.zeros(NUM_CLUES + 1, np.int64)
    for row in range(len(examples.right)):
        columns = (examples.inside, examples.first, examples.last, examples.pairs)
        met[np.unique(np.concatenate([column[row].ravel() for column in columns]))] += 1
    return met[:-1]


def _rounded(weights: Float[np.ndarray, " clue"]) -> tuple[Int8[np.ndarray, " clue"], np.float32]:
    """Weights as whole numbers, and what one of them is worth."""
    scale = np.float32(np.abs(weights).max() / LEVELS)
    return np.round(weights / scale).astype(np.int8), scale


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpus", type=pathlib.Path, required=True, help="shards whose instructions are read besides")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file to write, ending in .npz")
    parser.add_argument("--held-out", type=pathlib.Path, nargs="*", default=[], help="requests to be judged by")
    parser.add_argument("--epochs", type=int, default=15, help="passes over all requests (default 15)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    requests = read_samples(read_data(REQUESTS_FILE))
    weights = train(requests, _of_corpus(arguments.corpus), num_epochs=arguments.epochs, seed=arguments.seed)
    levels, scale = _rounded(weights)
    for path in arguments.held_out:
        _LOG.info("%s: %d of %d right", path, *accuracy(levels * scale, read_samples(path.read_bytes())))
    partial = arguments.out.with_name(arguments.out.name + ".partial.npz")
    np.savez_compressed(partial, weights=levels, scale=scale)
    partial.replace(arguments.out)


if __name__ == "__main__":
    main()
