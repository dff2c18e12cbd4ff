r"""Puts the parts of a voice into one folder that `voxinstruct_jax.load` opens.

Run: uv run python launch/assemble_voice.py --units voice/units --codec runs/codec --ar runs/ar --nar runs/nar \
    --out voice
Runs are exported in int8, what makes codes in bfloat16; boundaries of classes (`bins.json`) come with the AR run;
`--card` is stored as the voice's MODEL_CARD.md.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from voxinstruct_jax.checkpoints.weights import read_settings
from voxinstruct_jax.cli.convert import export_run
from voxinstruct_jax.config import VoxError, to_dict
from voxinstruct_jax.judges.bins import carry_bins
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.voice_folder import VoiceConfig


def main() -> int:
    """Exports the runs and writes `voice.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for part in ("units", "codec", "ar", "nar", "out"):
        parser.add_argument(f"--{part}", type=Path, required=True)
    parser.add_argument("--card", type=Path)
    options = parser.parse_args()
    out: Path = options.out
    try:
        for part in ("codec", "ar", "nar"):
            source: Path = getattr(options, part)
            if (source / "run.json").is_file():
                step = export_run(source, out / part, dtype="int8")
                print(f"{part}: step {step}")
            elif source.resolve() != (out / part).resolve():
                shutil.copytree(source, out / part, dirs_exist_ok=True)
        if options.units.resolve() != (out / "units").resolve():
            shutil.copytree(options.units, out / "units", dirs_exist_ok=True)
        carry_bins(options.ar, out)
    except VoxError as error:
        print(error, file=sys.stderr)
        return 1
    codebooks = read_settings(out / "nar")["model"]["vocabulary"]["num_codebooks"]
    config = VoiceConfig(
        num_steps=VoiceConfig().num_steps[: codebooks - 1], text_fingerprint=PronunciationTokenizer().fingerprint
    )
    (out / "voice.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")
    if options.card:
        shutil.copyfile(options.card, out / "MODEL_CARD.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
