"""AISHELL-3: `train/` and `test/` with `content.txt` (characters and pinyin by turns) and `wav/SPEAKER/*.wav`."""

import posixpath
from collections.abc import Iterator

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.importers.source import ImportOptions, gender_name, is_folder, make_row, read_lines
from voxinstruct_jax.data.manifest import Rejection, Row

__all__ = ["read_aishell3"]

SUBSETS = ("train", "test")
SPEAKER_LETTERS = 7
"""An utterance's name begins with its speaker's: SSB0005 of SSB00050001."""
AGES = {"A": "child", "B": "young", "C": "young"}
"""Bands of the speaker table: under 14, 14 to 25, 26 to 40 years. D, 41 and over, may be middle-aged or elderly."""


def read_aishell3(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads both subsets or one, with gender and age band from spk-info.txt; the pinyin stays in `extra`.

    Raises:
        InputError: No content.txt is there.

    Source:
        Shi et al., "AISHELL-3", 2020; the README of openslr.org/93.
    """
    speakers = _speakers(posixpath.join(source, "spk-info.txt"))
    number, found = 0, False
    for subset in SUBSETS if options.subset is None else (options.subset,):
        folder = posixpath.join(source, subset)
        content = posixpath.join(folder, "content.txt")
        try:
            is_folder(content)
        except InputError:
            continue
        found = True
        for _, line in read_lines(content):
            number += 1
            file, _, paired = line.partition("\t")
            name, tokens = posixpath.splitext(file.strip())[0], paired.split()
            if len(tokens) % 2:
                yield Rejection(row=number, id=name, reason="text and pinyin: they do not come in pairs")
                continue
            speaker = name[:SPEAKER_LETTERS]
            attributes, band = speakers.get(speaker, ({}, {}))
            yield make_row(
                number,
                name,
                audio=posixpath.join(folder, "wav", speaker, f"{name}.wav"),
                language=options.language,
                transcript="".join(tokens[::2]),
                speaker=speaker,
                attributes=dict(attributes),
                extra={"pinyin": " ".join(tokens[1::2]), **band},
            )
    if not found:
        raise InputError(f"{source}: no content.txt in {' or '.join(SUBSETS)}; give the folder of data_aishell3")


def _speakers(location: str) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Attributes, and age band and accent as published, by speaker."""
    found = {}
    for _, line in read_lines(location):
        speaker, *cells = line.split()
        if line.startswith("#") or len(cells) < 2:
            continue
        named = {"gender": gender_name(cells[1]), "age": AGES.get(cells[0])}
        published = dict(zip(("age_band", "gender", "accent"), cells, strict=False))
        published.pop("gender")
        found[speaker] = ({key: value for key, value in named.items() if value}, published)
    return found
