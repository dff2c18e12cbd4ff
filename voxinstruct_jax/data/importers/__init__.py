"""Importers: published layouts of speech corpora to manifest rows, one module a family.

Each reads its layout in a stream and yields a `Row` or, where there can be none, a `Rejection` with the reason; the
text before the first colon of a reason is its kind. `import_rows` finds the importer by name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.importers.aishell3 import read_aishell3
from voxinstruct_jax.data.importers.folder import read_folder, read_ljspeech
from voxinstruct_jax.data.importers.kaldi import read_kaldi
from voxinstruct_jax.data.importers.lhotse import read_lhotse
from voxinstruct_jax.data.importers.libritts import read_libritts
from voxinstruct_jax.data.importers.long_recordings import read_gigaspeech, read_wenetspeech
from voxinstruct_jax.data.importers.source import ImportOptions, language_code, measure
from voxinstruct_jax.data.importers.textrolspeech import read_textrolspeech
from voxinstruct_jax.data.manifest import Rejection, Row, iter_manifest
from voxinstruct_jax.data.store import absolute

__all__ = ["FORMATS", "Format", "ImportOptions", "import_rows"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout that can be imported."""

    read: Callable[[str, ImportOptions], Iterator[Row | Rejection]]
    """From an absolute path or URL."""
    source: str
    """What to give as the source."""
    language: str | None = None
    """Of all its rows; None where rows say it or the options must."""
    asks_language: bool = False
    """Whether the layout never says it."""
    subsets: str = ""
    """Names that `subset` may take, or what they are; empty where there are none."""


def _read_manifest(source: str, _: ImportOptions) -> Iterator[Row | Rejection]:
    rejected: list[Rejection] = []
    for row in iter_manifest(source, rejected=rejected):
        yield from rejected
        rejected.clear()
        yield row
    yield from rejected


FORMATS = {
    "folder": Format(
        read=read_folder,
        source="a folder of audio with a .txt or .lab beside each file, or with a table of names and texts",
        asks_language=True,
    ),
    "ljspeech": Format(read=read_ljspeech, source="a folder with metadata.csv and wavs/", asks_language=True),
    "lhotse": Format(
        read=read_lhotse,
        source="cuts.jsonl(.gz), supervisions.jsonl(.gz) beside its recordings, or a folder of them",
        subsets="part of the file names, such as dev",
    ),
    "kaldi": Format(read=read_kaldi, source="a data folder with wav.scp and text"),
    "gigaspeech": Format(
        read=read_gigaspeech,
        source="a folder with GigaSpeech.json and audio/",
        language="en",
        subsets="XS, S, M, L, XL, DEV, TEST",
    ),
    "wenetspeech": Format(
        read=read_wenetspeech,
        source="a folder with WenetSpeech.json and audio/",
        language="zh",
        subsets="S, M, L, W, DEV, TEST_NET, TEST_MEETING",
    ),
    "libritts": Format(
        read=read_libritts,
        source="LibriTTS or LibriTTS-R: a folder with SPEAKERS.txt and subset folders, or one subset",
        language="en",
        subsets="train-clean-100, dev-clean, ...",
    ),
    "aishell3": Format(
        read=read_aishell3,
        source="a folder with spk-info.txt, train/ and test/",
        language="zh",
        subsets="train, test",
    ),
    "textrolspeech": Format(
        read=read_textrolspeech, source="a caption table (.csv) or the folder that holds caption/", language="en"
    ),
    "manifest": Format(read=_read_manifest, source="a manifest (JSON lines or Parquet), to filter it again"),
}


def import_rows(name: str, source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads a corpus; rows that are whole local files get their duration from the file.

    Args:
        name: A key of `FORMATS`.
        source: What the format asks for; a local path or an fsspec URL.
        options: What the layout leaves open.

    Raises:
        ConfigError: The format is unknown, asks for a language, or has no subsets.
        InputError: The source is missing, or is not of this layout.
    """
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}; known: {', '.join(FORMATS)}")
    layout = FORMATS[name]
    language = language_code(options.language) or layout.language
    if layout.asks_language and language is None:
        raise ConfigError(f"{name}: this layout does not say its language; give --language en or --language zh")
    if options.subset is not None and not layout.subsets:
        raise ConfigError(f"{name}: has no subsets; leave --subset out")
    return map(measure, layout.read(absolute(source), ImportOptions(language=language, subset=options.subset)))
