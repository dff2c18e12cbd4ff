"""Listening tests: a folder that opens from disk, asks people, and saves their answers as JSON.

MOS (one sound, 1 to 5), CMOS (two sounds, -3 to +3) and MUSHRA (all systems beside a reference, 0 to 100, with a hidden
reference and a 3.5 kHz anchor). Systems hide behind random names; which is which stands in a key beside the folder, not
in it. The folder needs no server: `index.html?rater=N`, N from 1. What comes back is read by `listening_answers`. A
MUSHRA test also holds `webmushra.yaml`: copied into webMUSHRA's `configs/`, the folder is a test there too.

Source: VoxInstruct, section 5.1 (MOS-Q, MOS-I, MOS-S: 20 listeners, 1 to 5 in steps of 1); ITU-R BS.1534-3 (MUSHRA).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from voxinstruct_jax.audio.waveform import read_audio, write_audio
from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.evaluation.pages import write_page
from voxinstruct_jax.evaluation.webmushra import webmushra_config
from voxinstruct_jax.judges.pitch import active_level_dbfs, energy_track

__all__ = ["ANCHOR", "QUESTIONS", "REFERENCE", "Aspect", "Kind", "ListeningItem", "export_test"]

Kind = Literal["mos", "cmos", "mushra"]
Aspect = Literal["quality", "instruction", "similarity"]
QUESTIONS: Mapping[Aspect, str] = {
    "quality": "How natural and clear is the speech, whatever it was asked to be?",
    "instruction": "How well does the speech follow the instruction, whatever its sound quality?",
    "similarity": "How alike are the voice of the speech and the voice of the reference, whatever is said?",
}
SCALES: Mapping[Kind, tuple[int, int]] = {"mos": (1, 5), "cmos": (-3, 3), "mushra": (0, 100)}
REFERENCE, ANCHOR = "hidden reference", "3.5 kHz anchor"
"""Systems of a MUSHRA test that nobody has built."""
SAMPLE_RATE = 24_000
LEVEL_DBFS = -27.0
"""Of the active parts of every sound, so that nobody judges loudness."""
ANCHOR_HZ = 3500.0
REPEATED_SHARE = 0.1
"""Pages of a MOS test that come twice, to see whether a listener agrees with herself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListeningItem:
    """One request as several systems have spoken it."""

    id: str
    instruction: str
    transcript: str
    audio: Mapping[str, Path]
    """Sound of each system."""
    reference: Path | None = None
    """The voice prompt, or a human recording of the words."""


def export_test(
    kind: Kind,
    items: Sequence[ListeningItem],
    out: Path,
    *,
    raters: int,
    seed: int = 0,
    aspect: Aspect = "quality",
    keep_levels: bool = False,
) -> Path:
    """Writes the folder of a listening test, and `OUT.key.json` beside it.

    Args:
        kind: mos, cmos (two systems) or mushra (needs references).
        items: Each with the same systems.
        out: Folder to write; its `index.html?rater=N` is what a listener opens.
        raters: How many listeners there will be; each hears an item in the next system's voice (a Latin square).
        seed: Of all orders and names.
        aspect: What is asked.
        keep_levels: Leave the sounds as loud as they are, for tests of energy.

    Returns:
        The path of the key.

    Raises:
        ConfigError: The items do not fit the kind of test.
        InputError: A sound cannot be read, or the folder cannot be written.
    """
    systems = _check(kind, items, raters, aspect)
    generator = np.random.default_rng(seed)
    sounds = _Sounds(out / "audio", generator, keep_levels)
    try:
        sounds.folder.mkdir(parents=True, exist_ok=True)
        pages, key = _pages(kind, items, systems, sounds)
        test = {
            "kind": kind,
            "question": QUESTIONS[aspect],
            "scale": SCALES[kind],
            "pages": pages,
            "orders": _orders(kind, len(items), len(systems), raters, generator),
        }
        test = {"test": fingerprint(test), **test}
        script = json.dumps(test, ensure_ascii=False, indent=1).replace("<", "\\u003c")
        (out / "config.js").write_text(f"window.TEST = {script};\n", encoding="utf-8")
        write_page(out / "index.html", "listening.html", title="Listening test")
        if kind == "mushra":
            hidden = {name for name, sample in key.items() if sample["system"] == REFERENCE}
            config = webmushra_config(test["test"], test["question"], pages, out.resolve().name, hidden)
            (out / "webmushra.yaml").write_text(config, encoding="utf-8")
        place = out.with_name(f"{out.name}.key.json")
        record = {"test": test["test"], "kind": kind, "aspect": aspect, "seed": seed, "samples": key}
        place.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    return place


def _check(kind: Kind, items: Sequence[ListeningItem], raters: int, aspect: Aspect) -> tuple[str, ...]:
    """Returns the systems."""
    if not items or raters < 1:
        raise ConfigError("a listening test needs at least one item and one rater")
    systems = tuple(sorted(items[0].audio))
    odd = [item.id for item in items if tuple(sorted(item.audio)) != systems]
    if odd:
        raise ConfigError(f"{odd[0]}: spoken by other systems than {items[0].id}; compare what all of them have")
    if kind == "cmos" and len(systems) != 2:
        raise ConfigError(f"cmos compares two systems, got {len(systems)}: {', '.join(systems)}")
    if kind == "mushra" or aspect == "similarity":
        bare = [item.id for item in items if item.reference is None]
        if bare:
            raise ConfigError(f"{bare[0]}: has no reference, which {kind} of {aspect} needs; use items with prompts")
    return systems


def _pages(
    kind: Kind, items: Sequence[ListeningItem], systems: tuple[str, ...], sounds: "_Sounds"
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """Writes the sounds; returns the pages, and what each sample is: item and system.

    A MOS page holds one sample, so an item has a page a system, in the order of `systems`.
    """
    pages, key = [], {}
    for item in items:
        heard = _heard(kind, item, systems)
        shown = heard.get(REFERENCE)
        if shown is None and item.reference:
            shown = read_audio(item.reference, SAMPLE_RATE)
        reference = None if shown is None else sounds.add(shown)
        samples = []
        for system, samples_of in heard.items():
            name = sounds.add(samples_of)
            samples.append(name)
            key[name] = {"item": item.id, "system": system}
        asked = {"instruction": item.instruction, "transcript": item.transcript, "reference": reference}
        groups = [[sample] for sample in samples] if kind == "mos" else [samples]
        pages += [{**asked, "samples": group} for group in groups]
    return pages, key


def _heard(kind: Kind, item: ListeningItem, systems: tuple[str, ...]) -> dict[str, Float32[np.ndarray, " sample"]]:
    heard = {system: read_audio(item.audio[system], SAMPLE_RATE) for system in systems}
    if kind == "mushra" and item.reference is not None:
        reference = read_audio(item.reference, SAMPLE_RATE)
        heard |= {REFERENCE: reference, ANCHOR: _low_passed(reference)}
        # One can switch between them while they play, so they end together.
        longest = max(map(len, heard.values()))
        heard = {system: np.pad(samples, (0, longest - len(samples))) for system, samples in heard.items()}
    return heard


def _orders(kind: Kind, items: int, systems: int, raters: int, generator: np.random.Generator) -> list[list[int]]:
    """Returns the page numbers of each rater.

    Of a MOS test, an item in one system's voice a rater: rater r hears item i from system (i + r) mod S.
    """
    orders = []
    for rater in range(raters):
        pages = np.arange(items)
        if kind == "mos":
            pages = pages * systems + (pages + rater) % systems
        order = generator.permutation(pages)
        if kind == "mos":
            again = generator.permutation(order)[: round(items * REPEATED_SHARE)]
            order = np.concatenate([order, again])
        orders.append(order.tolist())
    return orders


@dataclasses.dataclass(frozen=True)
class _Sounds:
    """Writes sounds under names that tell nothing."""

    folder: Path
    generator: np.random.Generator
    keep_levels: bool

    def add(self, samples: Float32[np.ndarray, " sample"]) -> str:
        """Returns the name of the file, such as `3f9a01c2.flac`."""
        name = f"{int(self.generator.integers(2**48)):012x}.flac"
        if not self.keep_levels:
            level = active_level_dbfs(energy_track(samples, SAMPLE_RATE))
            samples = samples * np.float32(10 ** ((LEVEL_DBFS - level) / 20)) if np.isfinite(level) else samples
        peak = float(np.abs(samples).max(initial=0.0))
        # One tag for all: it must not tell a system from a person.
        write_audio(self.folder / name, samples / max(peak, 1.0), SAMPLE_RATE, tag="listening test; synthetic speech?")
        return name


def _low_passed(samples: Float32[np.ndarray, " sample"]) -> Float32[np.ndarray, " sample"]:
    """The anchor of MUSHRA, by a brick wall in the spectrum."""
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) > ANCHOR_HZ] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)
