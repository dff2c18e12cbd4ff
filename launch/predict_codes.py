r"""Writes the codes that a voice predicts for prepared clips, told each code before: what its codec will meet.

The first codebook is drawn frame by frame from what the AR model says after the clip's own codes (teacher forcing), as
the voice draws it, without guidance and never anew; the NAR model fills the others from it. The clip's semantic units
stand beside them. `configs/codec_decoder_small.py` trains the codec's decoder on the result. One of a clip's
instructions is read, drawn by the seed. Started again it goes on.

Run: uv run python launch/predict_codes.py corpus/dev --voice voice --out predicted.npz
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int32

from voxinstruct_jax.config import InputError, VoxError, fingerprint
from voxinstruct_jax.data.packing import Clip, pack
from voxinstruct_jax.data.predicted_codes import PredictedClip, read_codes, write_codes
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.data.shards import Example, ShardReader
from voxinstruct_jax.decoding.requests import ARRequest, FinishReason, Limits
from voxinstruct_jax.decoding.sampling import SamplingConfig, filter_logits
from voxinstruct_jax.decoding.stages import SpeechRequest, Spoken, choose_width, fit_units
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.models.style import NUM_CLASSES
from voxinstruct_jax.text.tokenizer import arrange_text, spread_durations
from voxinstruct_jax.training.ar import ar_targets
from voxinstruct_jax.vocabulary import ACOUSTIC, PackedBatch, build_layout, build_prompt, expand
from voxinstruct_jax.voice import ROOMS, Voice, load
from voxinstruct_jax.voice_folder import TEXT_WIDTHS, codes_fingerprint

COLDEST = 1e-3
"""Temperature that stands for greedy decoding."""
CLIPS_A_CHECKPOINT = 100


def main() -> int:
    """Predicts clip by clip and writes the file when all are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder that `prepare` wrote with this voice's codec")
    parser.add_argument("--voice", type=Path, help="folder (default: the embedded voice)")
    parser.add_argument("--out", type=Path, required=True, help="file to be written (.npz)")
    parser.add_argument("--clips", type=int, help="so many, drawn by the seed (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        _predict_all(options)
    except VoxError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _predict_all(options: argparse.Namespace) -> None:
    """Predicts clip by clip; what is there already is kept."""
    voice, reader = load(options.voice), ShardReader(options.shards)
    if codes_fingerprint(voice.codec) != reader.index.fingerprints["codec"]:
        raise InputError(
            f"{options.shards}: codes of another codec than that of {voice.name}; give the --voice of these"
        )
    order = np.random.default_rng(options.seed).permutation(len(reader))[: options.clips]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # of the same work: what another voice, other shards or another seed left is not gone on with
    work = fingerprint([voice.name, reader.fingerprint, options.seed])
    partial = options.out.with_suffix(f".{work}.partial.npz")
    done = list(read_codes(str(partial), voice.codec.config).items()) if partial.exists() else []
    with progress_bar("clips", len(order), done=len(done)) as advance:
        for record in order[len(done) :].tolist():
            example = reader[record]
            done.append((example.id, predict(voice, example, (options.seed, record))))
            if len(done) % CLIPS_A_CHECKPOINT == 0:
                write_codes(partial, done)
            advance()
    write_codes(options.out, [(name, clip) for name, clip in done if clip.codes.shape[1]])
    partial.unlink(missing_ok=True)
    too_long = sum(not clip.codes.shape[1] for _, clip in done)
    print(f"{options.out}: {len(done) - too_long} clips; {too_long} too long for this voice were left out")


def predict(voice: Voice, example: Example, seed: tuple[int, int]) -> PredictedClip:
    """Codes of one clip, all codebooks, and its units; of no frames where the clip is too long for the voice."""
    random, model = np.random.default_rng(seed), voice.ar.config
    if model.timing != "aligned" or not model.semantic:
        raise InputError(f"{voice.name}: predicting is written for aligned models with semantic tokens")
    instruction = example.instructions[int(random.integers(len(example.instructions)))]
    text = arrange_text(voice.tokenizer.encode(instruction), model.text_form)
    nothing = np.zeros((len(example.codes), 0), np.int32)
    if len(text) > TEXT_WIDTHS[-1] or example.codes.shape[1] > ROOMS[-1]:
        return PredictedClip(codes=nothing, units=nothing[0])
    semantic = expand(example.semantic_tokens, example.run_lengths)
    durations = spread_durations(text, example.durations)
    layout = build_layout(model.vocabulary, example.language, semantic, example.codes[: model.vocabulary.num_codebooks])
    text_width = choose_width(len(text), TEXT_WIDTHS)
    frames = choose_width(example.codes.shape[1], ROOMS)
    batch = pack(
        [[Clip(text_tokens=text, layout=layout, durations=durations)]],
        text_width=text_width,
        time_width=text_width + 2 * frames + 4,
        clip_ids=np.zeros(1, np.int64),
    )
    key = jax.random.key(int(random.integers(2**31)))
    drawn, wanted = _draw(voice.ar.graph, voice.ar.state, jax.tree.map(jnp.asarray, batch), key, voice.config.sampling)
    first = np.asarray(drawn)[np.asarray(wanted)]
    request = SpeechRequest(
        ar=ARRequest(
            text_tokens=text,
            prompt=build_prompt(model.vocabulary, example.language, semantic[:0], nothing),
            guidance=Guidance(),
            limits=Limits(min_semantic=0, max_semantic=0, min_acoustic=0, max_acoustic=0, max_total=0),
            seed=int(random.integers(2**31)),
        ),
        prompt_units=semantic[:0],
        prompt_codes=nothing,
    )
    spoken = Spoken(
        language=example.language,
        semantic=semantic,
        first_codes=first,
        reason=FinishReason.STOP,
        durations=durations.astype(np.float32),
        classes=np.zeros(NUM_CLASSES, np.float32),
    )
    codes = voice.fill_codes(request, spoken)
    return PredictedClip(codes=codes, units=fit_units(semantic, len(first)))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _draw(
    graph: Any, state: Any, batch: PackedBatch, key: Array, sampling: SamplingConfig
) -> tuple[Int32[Array, " time"], Bool[Array, " time"]]:
    """The code that is drawn for what follows each slot of a one-row batch, and where that is a code."""
    model = nnx.merge(graph, state)
    vocabulary = model.config.vocabulary
    nowhere = jnp.zeros(batch.segment_ids.shape, bool)
    text_rows = model.embed_text(batch.text_tokens, batch.text_segment_ids, key=None)
    logits = model.logits(model.hidden(batch, text_rows, nowhere, nowhere))[0]
    codes = slice(vocabulary.acoustic_offset, vocabulary.acoustic_offset + vocabulary.codebook_size)
    likely = filter_logits(
        logits[:, codes],
        top_k=sampling.acoustic_top_k,
        top_p=sampling.top_p,
        temperature=max(sampling.temperature, COLDEST),
    )
    targets, parts = ar_targets(batch)
    wanted = (parts[0] == ACOUSTIC) & (targets[0] >= codes.start) & (targets[0] < codes.stop)
    return jax.random.categorical(key, likely).astype(jnp.int32), wanted


if __name__ == "__main__":
    sys.exit(main())
