r"""Resynthesises clips by a voice's codec, from all of its codebooks or the first few, without semantic units.

`voxinstruct evaluate OUT --reference MANIFEST` then says what the codec loses of the words, and the metrics of
`reconstruction.` (`reference_audio` is the original) how near the sound is.

Run: uv run python benchmarks/codec_speech.py tests/corpus/generated/manifest.jsonl --out resynthesised [--codebooks 2]
"""

import argparse
import dataclasses
from pathlib import Path

from voxinstruct_jax.audio.waveform import read_audio, write_audio
from voxinstruct_jax.data.manifest import read_manifest, write_manifest
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.voice_folder import decode_clip, embedded_release, encode_clip, load_codec


def main() -> int:
    """Codes and decodes one clip after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--voice", type=Path, default=embedded_release(), help="folder (default: the embedded one)")
    parser.add_argument("--codebooks", type=int, help="decode the first N only (default: all)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    codec, rows = load_codec(options.voice / "codec"), read_manifest(options.manifest)
    rate, written = codec.config.sample_rate, []
    with progress_bar("clips", len(rows)) as advance:
        for row in rows:
            original = Path(row.audio).resolve()
            codes = encode_clip(codec, read_audio(original, rate))[: options.codebooks]
            audio = options.out / "audio" / f"{row.id}.flac"
            write_audio(audio, decode_clip(codec, codes), rate, tag="speech through a codec")
            extra = {**row.extra, "reference_audio": str(original)}
            written.append(dataclasses.replace(row, audio=f"audio/{row.id}.flac", extra=extra))
            advance()
    write_manifest(options.out / "manifest.jsonl", written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
