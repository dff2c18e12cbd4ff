"""Does a voice read which gender, pitch, energy and speed a request asks for?

Run: uv run python benchmarks/reading.py [REQUESTS.jsonl.bz2] [--voice VOICE] [--misread]
Set: by default the eighth of the shipped requests that is held out from training (`data.described`); or a file of the
same form, such as tests/text/outside_requests.jsonl.bz2: two hundred requests by two writers who had seen nothing of
this project, written before the reader that is shipped was trained.
A class is read where it is sure enough (`models.style.SURE`). "Not asked for": a class but the middle one was read
where nothing says so.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.data.described import asked_numbers, described_requests
from voxinstruct_jax.decoding.prosody import asked_class
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.text.sample_requests import SampleRequest, read_samples
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.utterance import with_quotes
from voxinstruct_jax.voice_folder import embedded_release, open_ar

WIDTH = 1024


def main() -> int:
    """Prints a line an attribute; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path, nargs="?")
    parser.add_argument("--voice", type=Path, default=embedded_release())
    parser.add_argument("--misread", action="store_true", help="print each request that was misread")
    arguments = parser.parse_args()
    requests = described_requests(held_out=True)
    if arguments.requests:
        requests = tuple(read_samples(arguments.requests.read_bytes()))
    counts = read_all(arguments.voice, requests, show=arguments.misread)
    for name in STYLE_CLASSES:
        right, asked, invented, unasked = (counts[name, what] for what in ("right", "asked", "invented", "unasked"))
        print(f"{name}: {right} of {asked} read right; read though not asked for in {invented} of {unasked}")
    return 0


def read_all(voice: Path, requests: tuple[SampleRequest, ...], *, show: bool) -> Counter[tuple[str, str]]:
    """Counts by attribute what was asked for and read right, and what was read though not asked for."""
    loaded, tokenizer = open_ar(voice), PronunciationTokenizer()
    model = nnx.merge(loaded.graph, loaded.state)
    counts = Counter[tuple[str, str]]()
    for request in requests:
        text = with_quotes(request.instruction, None, [])
        classes = read_classes(model, tokenizer.encode(text))
        for name, number in zip(STYLE_CLASSES, asked_numbers(request.asked), strict=True):
            found = asked_class(classes, name)
            if number > 0:
                wanted = STYLE_CLASSES[name][number - 1]
                counts[name, "asked"] += 1
                counts[name, "right"] += found == wanted
                if show and found != wanted:
                    print(f"{name}: {found}, asked for {wanted}: {text!r}")
            elif number < 0:
                counts[name, "unasked"] += 1
                counts[name, "invented"] += found not in (None, "normal")
    return counts


def read_classes(model: ARModel, text: Int[np.ndarray, "text channel"]) -> Float[np.ndarray, " class"]:
    """Probabilities of all classes, one attribute after another."""
    width = max(WIDTH, len(text))
    tokens = np.zeros((1, width, text.shape[1]), np.int32)
    tokens[0, : len(text)] = text
    return np.asarray(_read(model, jnp.asarray(tokens), jnp.asarray(np.arange(width) < len(text), jnp.int32)[None]))


@nnx.jit
def _read(
    model: ARModel, tokens: Int[jnp.ndarray, "1 text channel"], segment_ids: Int[jnp.ndarray, "1 text"]
) -> Float[jnp.ndarray, " class"]:
    style = model.read_style(tokens, segment_ids)
    assert style is not None
    return style.probabilities[0, 0]


if __name__ == "__main__":
    sys.exit(main())
