r"""Writes what a voice's NAR model makes of prepared clips: what the codec's decoder will meet.

A clip keeps its own first codebook and semantic units, and the NAR model fills the other codebooks. Beside them stand
the linguistic features of each frame. `configs/codec_decoder_small.py` trains the codec's decoder on the result. One of
a clip's instructions is read, drawn by the seed. Started again it goes on.

Run: uv run python launch/predict_codes.py corpus/dev --voice voice --out predicted.npz
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from voxinstruct_jax.audio.linguistic import NUM_FEATURES
from voxinstruct_jax.config import InputError, VoxError, fingerprint
from voxinstruct_jax.data.predicted_codes import PredictedClip, read_codes, write_codes
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.data.shards import Example, ShardReader
from voxinstruct_jax.decoding.requests import ARRequest, FinishReason, Limits
from voxinstruct_jax.decoding.stages import SpeechRequest, Spoken, said_features
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.models.style import NUM_CLASSES
from voxinstruct_jax.text.tokenizer import arrange_text, spread_durations
from voxinstruct_jax.vocabulary import build_prompt, expand
from voxinstruct_jax.voice import ROOMS, Voice, load
from voxinstruct_jax.voice_folder import TEXT_WIDTHS, codes_fingerprint

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
    """Codes of one clip, all codebooks, and its features; of no frames where the clip is too long for the voice."""
    random, model = np.random.default_rng(seed), voice.ar.config
    if model.timing != "aligned" or not model.semantic:
        raise InputError(f"{voice.name}: predicting is written for aligned models with semantic tokens")
    instruction = example.instructions[int(random.integers(len(example.instructions)))]
    text = arrange_text(voice.tokenizer.encode(instruction), model.text_form)
    nothing, frames = np.zeros((len(example.codes), 0), np.int32), example.codes.shape[1]
    if len(text) > TEXT_WIDTHS[-1] or frames > ROOMS[-1]:
        return PredictedClip(codes=nothing, features=np.zeros((0, NUM_FEATURES), np.int32))
    request = SpeechRequest(
        ar=ARRequest(
            text_tokens=text,
            prompt=build_prompt(model.vocabulary, example.language, nothing[0], nothing),
            guidance=Guidance(),
            limits=Limits(min_semantic=0, max_semantic=0, min_acoustic=0, max_acoustic=0, max_total=0),
            seed=int(random.integers(2**31)),
        ),
        prompt_units=nothing[0],
        prompt_codes=nothing,
    )
    spoken = Spoken(
        language=example.language,
        semantic=expand(example.semantic_tokens, example.run_lengths),
        first_codes=example.codes[0].astype(np.int32),
        reason=FinishReason.STOP,
        durations=spread_durations(text, example.durations).astype(np.float32),
        classes=np.zeros(NUM_CLASSES, np.float32),
    )
    features = said_features(text, spoken.durations, spoken.semantic, frames)
    return PredictedClip(codes=voice.fill_codes(request, spoken), features=features)


if __name__ == "__main__":
    sys.exit(main())
