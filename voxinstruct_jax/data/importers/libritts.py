"""LibriTTS and LibriTTS-R: `subset/speaker/chapter/*.wav`, each with its `*.normalized.txt`."""

import posixpath
from collections.abc import Iterator

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.importers.source import (
    ImportOptions,
    gender_name,
    is_audio,
    is_folder,
    make_row,
    open_binary,
    read_lines,
    walk,
)
from voxinstruct_jax.data.manifest import Rejection, Row

__all__ = ["read_libritts"]

SPEAKER_TABLES = (("SPEAKERS.txt", "|"), ("speakers.tsv", "\t"))


def read_libritts(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads the whole corpus, or one subset; the gender comes from SPEAKERS.txt (or speakers.tsv) there or above.

    Raises:
        InputError: There is no such subset, or no audio.

    Source:
        Zen et al., "LibriTTS", 2019; Koizumi et al., "LibriTTS-R", 2023; the READMEs of openslr.org/60 and /141.
    """
    if not is_folder(source):
        raise InputError(f"{source}: give the folder of the corpus")
    genders, number = _genders(source), 0
    root = source if options.subset is None else posixpath.join(source, options.subset)
    is_folder(root)
    for folder, names in walk(root):
        there = set(names)
        for audio in filter(is_audio, names):
            number += 1
            name = posixpath.splitext(audio)[0]
            speaker = name.partition("_")[0]
            text_file = f"{name}.normalized.txt"
            yield make_row(
                number,
                name,
                audio=posixpath.join(folder, audio),
                language=options.language,
                transcript=_text(posixpath.join(folder, text_file)) if text_file in there else "",
                speaker=speaker,
                attributes={"gender": genders[speaker]} if speaker in genders else {},
            )
    if not number:
        raise InputError(f"{root}: holds no audio; give the folder with train-clean-100 and the like")


def _genders(source: str) -> dict[str, str]:
    """By reader; a subset's own folder may lie below that of the table."""
    for folder in (source, posixpath.dirname(source)):
        for name, delimiter in SPEAKER_TABLES:
            try:
                lines = [line for _, line in read_lines(posixpath.join(folder, name))]
            except InputError:  # not there
                continue
            cells = [[cell.strip() for cell in line.split(delimiter)] for line in lines if not line.startswith(";")]
            return {row[0]: gender for row in cells if len(row) > 1 and (gender := gender_name(row[1]))}
    return {}


def _text(location: str) -> str:
    with open_binary(location) as file:
        return file.read().decode("utf-8", "surrogateescape")
