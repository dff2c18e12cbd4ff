"""Memory and time of the paper-size system, from files of the release's form to a waveform, with random weights.

Run: uv run --extra paper python benchmarks/full_size.py [--folder DIR] [--seconds S]
Each stage runs in a process of its own, whose peak resident memory is printed: `make` writes the release's two files
(484 and 501 million parameters, mT5 in both), EnCodec, Vocos and a text tokenizer; `convert` is the command; `speak`
loads the voice and speaks twice, the second time compiled. Needs 10 GB of disk in DIR.
"""

import argparse
import importlib
import io
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

GIB = 2**30


def main() -> int:
    """Runs the stages, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/full_size"))
    parser.add_argument("--seconds", type=float, default=2.0, help="longest speech")
    parser.add_argument("--stage", choices=STAGES, help="only this one, in this process")
    options = parser.parse_args()
    if options.stage is not None:
        begin = time.monotonic()
        STAGES[options.stage](options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"{options.stage}: {time.monotonic() - begin:.0f} s, peak {peak / GIB:.1f} GiB", flush=True)
        return 0
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(options.folder)]
        code = subprocess.run([*command, "--seconds", str(options.seconds)]).returncode
        if code:
            return code
    return 0


def make(options: argparse.Namespace) -> None:
    """Writes the files that a user would have downloaded."""
    from voxinstruct_jax.audio.codecs import EncodecVocos, EncodecVocosConfig
    from voxinstruct_jax.interop.pytorch_files import write_pytorch
    from voxinstruct_jax.interop.voxinstruct import Release, ReleaseAR, ReleaseConfig, ReleaseNAR, export_voxinstruct
    from voxinstruct_jax.models.ar import ARConfig, ARModel
    from voxinstruct_jax.models.nar import NARConfig, NARModel

    ar = draw(lambda: ARModel(ARConfig.paper(), rngs=nnx.Rngs(0)), seed=0)
    nar = draw(lambda: NARModel(NARConfig.paper(), rngs=nnx.Rngs(0)), seed=1)
    release = Release(ReleaseAR(ar, 512), ReleaseNAR(nar, 512), ReleaseConfig(), {"ar": {}, "nar": {}})
    for name, tensors in zip(("ar", "nar"), export_voxinstruct(release), strict=True):
        write_pytorch(options.folder / f"{name}.pyt", {"model": tensors, "steps": 0})
    pair = draw(lambda: EncodecVocos(EncodecVocosConfig(), rngs=nnx.Rngs(0)), seed=2)
    for name, part in (("encodec", pair.encodec), ("vocos", pair.vocos)):
        port = importlib.import_module(f"voxinstruct_jax.interop.{name}")
        getattr(port, f"export_{name}")(part, options.folder / name)
    (options.folder / "spiece.model").write_bytes(subwords())


def convert(options: argparse.Namespace) -> None:
    """Runs the command."""
    from voxinstruct_jax.cli.main import main as command

    folder = options.folder
    files = [f"--{name}={folder / name}.pyt" for name in ("ar", "nar")]
    files += [f"--{name}={folder / name}" for name in ("encodec", "vocos")]
    files += [f"--tokenizer={folder / 'spiece.model'}", "--out", str(folder / "voice")]
    assert command(["convert", "voxinstruct", *files]) == 0


def speak(options: argparse.Namespace) -> None:
    """Loads the voice and speaks with all three guidance branches."""
    import voxinstruct_jax as vox

    begin = time.monotonic()
    voice = vox.load(options.folder / "voice")
    print(f"loaded in {time.monotonic() - begin:.0f} s", flush=True)
    for attempt in ("first, compiling", "again"):
        begin = time.monotonic()
        audio = voice.synthesize('A man says: "no"', language="en", max_duration_s=options.seconds)
        took = time.monotonic() - begin
        tokens = len(audio.semantic) + audio.acoustic.shape[1]
        print(f"{attempt}: {took:.0f} s for {audio.duration_s:.2f} s of sound, {tokens} AR tokens", flush=True)
        assert np.isfinite(audio.samples).all()


STAGES = {"make": make, "convert": convert, "speak": speak}


def draw(build, seed: int):  # noqa: ANN001, ANN201 - any module
    """A module with small random weights, norms around one, drawn leaf by leaf on the host."""
    graph, state = nnx.split(nnx.eval_shape(build))
    random = np.random.default_rng(seed)

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.Array:
        values = 0.02 * random.standard_normal(shape.shape, np.float32)
        return jnp.asarray(values + (len(shape.shape) == 1))

    return nnx.merge(graph, jax.tree.map(leaf, state))


def subwords() -> bytes:
    """A small SentencePiece model; the embedding keeps its 250,112 rows."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["A man says: no", "a woman says yes"]),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=9,
    )
    return model.getvalue()


if __name__ == "__main__":
    sys.exit(main())
