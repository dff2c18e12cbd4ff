"""Trains letter-to-sound on the English lexicon and prints its accuracy on words held out.

Run: `python -m voxinstruct_jax.text.train_letter_to_sound --out letter_to_sound.npz`. It takes about four minutes on
one core. The file it writes is what `text/data` ships. Read `train` first.
"""

import argparse
import collections
import dataclasses
import logging
import pathlib
import random
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from voxinstruct_jax.text.alignment import ChunkTable, learn_chunk_log_probs, strip_stress
from voxinstruct_jax.text.letter_to_sound import CONTEXT, HISTORY, LetterToSound, letter_windows
from voxinstruct_jax.text.lexicon import english_lexicon

__all__ = ["accuracy", "train"]

_LOG = logging.getLogger(__name__)

LETTER_DIM, CHUNK_DIM, HIDDEN_DIM, SECOND_DIM = 24, 16, 272, 240
NUM_HELD_OUT = 5000
NUM_ALIGNED = 30_000
"""Words that the alignment is learned from; more change it no further."""
MIN_CHUNK_COUNT = 12
"""Words with a chunk of phones rarer than this are odd (abbreviations, slips) and left out."""
BATCH = 1024

Words = list[tuple[str, tuple[str, ...]]]
Aligned = list[tuple[str, tuple[tuple[str, ...], ...]]]
Params = dict[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """One row a letter: what the classifier sees, and the chunk it should name."""

    windows: Int[np.ndarray, "letter context"]
    history: Int[np.ndarray, "letter history"]
    stressed: Float[np.ndarray, " letter"]
    chunk: Int[np.ndarray, " letter"]


def train(words: Words, *, num_epochs: int, seed: int = 0) -> LetterToSound:
    """Aligns the words, then trains the classifier on them.

    Args:
        words: Training words with their phones.
        num_epochs: Passes over all letters.
        seed: Of the weights, the order, and the words that the alignment is learned from.
    """
    table = ChunkTable(log_probs=learn_chunk_log_probs(random.Random(seed).sample(words, min(NUM_ALIGNED, len(words)))))
    aligned = [(word, chunks) for word, phones in words if (chunks := table.align(word, phones)) is not None]
    counts = collections.Counter(chunk for _, chunks in aligned for chunk in chunks)
    classes = [("",), *sorted(chunk for chunk, count in counts.items() if count >= MIN_CHUNK_COUNT)]
    kept = [(word, chunks) for word, chunks in aligned if all(counts[chunk] >= MIN_CHUNK_COUNT for chunk in chunks)]
    examples = _examples(kept, {chunk: index for index, chunk in enumerate(classes)})
    _LOG.info("%d words, %d letters, %d chunks", len(kept), len(examples.chunk), len(classes))
    params = _fit(examples, len(classes), num_epochs, seed)
    weights = {name: np.asarray(value).astype(np.float16).astype(np.float32) for name, value in params.items()}
    return LetterToSound(chunks=((), *classes[1:]), weights=weights, table=table)


def accuracy(model: LetterToSound, words: Words) -> dict[str, float]:
    """Share of words wholly right, and 1 - edit distance / phones, each with stress and without.

    Returns:
        `word`, `phone`, `word_plain`, `phone_plain`, fractions in 0..1.
    """
    predicted = model.predict([word for word, _ in words])
    result = {}
    for suffix, view in (("", str), ("_plain", strip_stress)):
        pairs = [
            ([view(phone) for chunk in chunks for phone in chunk], [view(phone) for phone in phones])
            for chunks, (_, phones) in zip(predicted, words, strict=True)
        ]
        edits = sum(_edit_distance(given, wanted) for given, wanted in pairs)
        result["word" + suffix] = sum(given == wanted for given, wanted in pairs) / len(pairs)
        result["phone" + suffix] = 1 - edits / sum(len(wanted) for _, wanted in pairs)
    return result


def _edit_distance(given: list[str], wanted: list[str]) -> int:
    row = list(range(len(wanted) + 1))
    for i, left in enumerate(given, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]


def _examples(aligned: Aligned, class_of: dict[tuple[str, ...], int]) -> Examples:
    windows, history, stressed, chunk = [], [], [], []
    for word, chunks in aligned:
        ids = [class_of[c] for c in chunks]
        before = [0] * HISTORY + ids
        seen = np.cumsum([any(phone.endswith("1") for phone in c) for c in chunks]) > 0
        windows.append(letter_windows([word], len(word))[0])
        history.append([before[i : i + HISTORY] for i in range(len(ids))])
        stressed.append(np.concatenate([[False], seen[:-1]]))
        chunk.append(ids)
    return Examples(
        windows=np.concatenate(windows).astype(np.int8),
        history=np.concatenate(history).astype(np.int16),
        stressed=np.concatenate(stressed).astype(np.float32),
        chunk=np.concatenate(chunk).astype(np.int32),
    )


def _initial_params(num_chunks: int, seed: int) -> Params:
    input_dim = (2 * CONTEXT + 1) * LETTER_DIM + HISTORY * CHUNK_DIM + 1
    shapes = {
        "letter_embedding": (28, LETTER_DIM),
        "chunk_embedding": (num_chunks, CHUNK_DIM),
        "hidden_kernel": (input_dim, HIDDEN_DIM),
        "second_kernel": (HIDDEN_DIM, SECOND_DIM),
        "output_kernel": (SECOND_DIM, num_chunks),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    scale = {name: 0.3 if "embedding" in name else (2 / shape[0]) ** 0.5 for name, shape in shapes.items()}
    params = {n: scale[n] * jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    biases = {"hidden_bias": HIDDEN_DIM, "second_bias": SECOND_DIM, "output_bias": num_chunks}
    return params | {name: jnp.zeros(size) for name, size in biases.items()}


def _loss(params: Params, windows: Array, history: Array, stressed: Array, chunk: Array) -> Float[Array, ""]:
    letters = jax.nn.one_hot(windows, params["letter_embedding"].shape[0]) @ params["letter_embedding"]
    before = params["chunk_embedding"][history]
    rows = len(windows)
    inputs = jnp.concatenate([letters.reshape(rows, -1), before.reshape(rows, -1), stressed[:, None]], axis=1)
    hidden = jax.nn.relu(inputs @ params["hidden_kernel"] + params["hidden_bias"])
    hidden = jax.nn.relu(hidden @ params["second_kernel"] + params["second_bias"])
    logits = hidden @ params["output_kernel"] + params["output_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, chunk).mean()


def _fit(examples: Examples, num_chunks: int, num_epochs: int, seed: int) -> Params:
    num_batches = len(examples.chunk) // BATCH
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 200, num_batches * num_epochs)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)
    params = _initial_params(num_chunks, seed)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: optax.OptState, batch: tuple[Array, ...]) -> tuple[Any, optax.OptState, Array]:
        loss, gradient = jax.value_and_grad(_loss)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    order = np.random.default_rng(seed)
    for epoch in range(num_epochs):
        start, losses = time.monotonic(), []
        shuffled = order.permutation(len(examples.chunk))
        for rows in np.split(shuffled[: num_batches * BATCH], num_batches):
            columns = (examples.windows, examples.history, examples.stressed, examples.chunk)
            params, state, loss = step(params, state, tuple(jnp.asarray(c[rows]) for c in columns))
            losses.append(loss)
        mean = float(jnp.stack(losses).mean())
        _LOG.info("epoch %d: loss %.4f, %.0f s", epoch + 1, mean, time.monotonic() - start)
    return params


def _save(model: LetterToSound, path: pathlib.Path) -> None:
    arrays: dict[str, Any] = {name: value.astype(np.float16) for name, value in model.weights.items()}
    arrays["log_probs"] = model.table.log_probs.astype(np.float16)
    arrays["chunks"] = np.array(["_".join(chunk) for chunk in model.chunks])
    partial = path.with_name(path.name + ".partial.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file to write, ending in .npz")
    parser.add_argument("--epochs", type=int, default=9, help="passes over all letters (default 9)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    words = [(word, tuple(phones.split())) for word, phones in english_lexicon().items()]
    random.Random(arguments.seed).shuffle(words)
    model = train(words[NUM_HELD_OUT:], num_epochs=arguments.epochs, seed=arguments.seed)
    figures = accuracy(model, words[:NUM_HELD_OUT])
    _LOG.info("%d words held out: %s", NUM_HELD_OUT, {name: round(value, 4) for name, value in figures.items()})
    _save(model, arguments.out)


if __name__ == "__main__":
    main()
