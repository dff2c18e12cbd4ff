r"""How much a description tells an AR model of the codes of a clip that it describes rightly, without any listening.

Held-out clips are described twice, rightly and wrongly ("A man says", "A woman says"). The model's loss of the clip's
own tokens under both says which it finds likelier, and by how many bits: 0 bits = the description is not read. Lengths
are compared too: expected durations under the first description over those under the second.

Run: uv run python benchmarks/description_bits.py corpus/dev [--voice VOICE] [--clips 30]
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from voxinstruct_jax.data.packing import Clip, pack
from voxinstruct_jax.data.shards import Example, ShardReader
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.models.conditioning import expected_durations
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer, spread_durations
from voxinstruct_jax.training.ar import ar_targets
from voxinstruct_jax.vocabulary import ACOUSTIC, build_layout, expand
from voxinstruct_jax.voice_folder import embedded_release, open_ar

WORDINGS = {
    ("gender", "en"): {"male": 'A man says: "{}"', "female": 'A woman says: "{}"'},
    ("gender", "zh"): {"male": "一位男士说：“{}”", "female": "一位女士说：“{}”"},
    ("pitch", "en"): {"low": 'Somebody says in a low voice: "{}"', "high": 'Somebody says in a high voice: "{}"'},
    ("pitch", "zh"): {"low": "有人用低沉的声音说：“{}”", "high": "有人用尖细的高音说：“{}”"},
    ("energy", "en"): {"low": 'Somebody says softly: "{}"', "high": 'Somebody says loudly: "{}"'},
    ("energy", "zh"): {"low": "有人小声地说：“{}”", "high": "有人大声地说：“{}”"},
    ("speed", "en"): {"slow": 'Somebody says slowly: "{}"', "fast": 'Somebody says fast: "{}"'},
    ("speed", "zh"): {"slow": "有人慢慢地说：“{}”", "fast": "有人飞快地说：“{}”"},
}
TEXT_WIDTH, TIME_WIDTH = 192, 640
TOKENIZER = PronunciationTokenizer()


@dataclass(frozen=True)
class Heard:
    """A clip under a description."""

    acoustic_bits: float
    length: float
    """Expected half frames."""


def main() -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder of held-out clips that `prepare` wrote")
    parser.add_argument("--voice", type=Path, default=embedded_release())
    parser.add_argument("--clips", type=int, default=30, help="of each attribute and language, at most")
    options = parser.parse_args()
    loaded, reader = open_ar(options.voice), ShardReader(options.shards)
    hear = functools.partial(_hear, jax.jit(functools.partial(_losses, loaded.graph)), loaded)
    print("| attribute | language | clips | rightly described is likelier | bits a clip | length, first / second |")
    print("|---|---|---|---|---|---|")
    for (attribute, language), wordings in WORDINGS.items():
        clips = _chosen(reader, attribute, language, tuple(wordings), options.clips)
        found = [
            {name: hear(clip, wording.format(clip.transcript)) for name, wording in wordings.items()} for clip in clips
        ]
        if not found:
            continue
        gains, ratios = [], []
        for clip, heard in zip(clips, found, strict=True):
            first, second = heard.values()
            right = heard[clip.attributes[attribute]]
            wrong = second if right is first else first
            gains.append(wrong.acoustic_bits - right.acoustic_bits)
            ratios.append(first.length / second.length)
        likelier, names = np.mean(np.array(gains) > 0), " / ".join(wordings)
        print(
            f"| {attribute} ({names}) | {language} | {len(clips)} | {likelier:.0%} | {np.mean(gains):.2f} | "
            f"{np.mean(ratios):.2f} |"
        )
    return 0


def _chosen(reader: ShardReader, attribute: str, language: str, classes: Sequence[str], most: int) -> list[Example]:
    """Clips of these classes that fit, the first ones of a fixed order."""
    examples = (reader[int(record)] for record in np.random.default_rng(0).permutation(len(reader)))
    fitting = [
        example
        for example in examples
        if example.language == language
        and example.attributes.get(attribute) in classes
        and example.codes.shape[1] < TIME_WIDTH // 4
        and not set('"“”') & set(example.transcript)
    ]
    return fitting[:most]


def _losses(graph: Any, state: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss and part of each slot's next token, and the length expected."""
    model: ARModel = nnx.merge(graph, state)
    rows = model.embed_text(batch.text_tokens, batch.text_segment_ids)
    style = model.read_style(batch.text_tokens, batch.text_segment_ids)
    whole = jnp.zeros(batch.segment_ids.shape, bool)
    targets, parts = ar_targets(batch)
    logits = model.logits(model.hidden(batch, rows, whole, whole))
    durations = expected_durations(model.duration_logits(rows, batch.text_tokens, style)) * (batch.text_segment_ids > 0)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets), parts, durations.sum()


def _hear(losses: Any, loaded: Any, example: Example, instruction: str) -> Heard:
    vocabulary, text = loaded.config.vocabulary, TOKENIZER.encode(instruction)
    units = expand(example.semantic_tokens, example.run_lengths)
    clip = Clip(
        text_tokens=text,
        layout=build_layout(vocabulary, example.language, units, example.codes[: vocabulary.num_codebooks]),
        durations=spread_durations(text, example.durations),
    )
    batch = pack([[clip]], text_width=TEXT_WIDTH, time_width=TIME_WIDTH, clip_ids=np.zeros(1, np.int32))
    loss, parts, length = (np.asarray(x) for x in losses(loaded.state, jax.tree.map(jnp.asarray, batch)))
    return Heard(acoustic_bits=float(loss[parts == ACOUSTIC].sum() / np.log(2)), length=float(length))


if __name__ == "__main__":
    sys.exit(main())
