"""GigaSpeech and WenetSpeech: one JSON file that lists long recordings and the segments transcribed in them."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.importers.source import ImportOptions, is_folder, make_row, open_binary
from voxinstruct_jax.data.manifest import Rejection, Row

__all__ = ["read_gigaspeech", "read_wenetspeech"]

MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GARBAGE = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")
FIRST_PERSON = re.compile(r"\bi(?=$|['’ ,.!?])")
SENTENCE_START = re.compile(r"(?:^|[.!?] )\w")


def read_gigaspeech(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads the raw release; what is only noise, music or silence is rejected.

    Its capital letters become a sentence's ("AS IF <PERIOD>" is "As if."); the published text stays in `extra`.

    Raises:
        InputError: GigaSpeech.json is missing or cut off.

    Source:
        Chen et al., "GigaSpeech", 2021; the format as the repository SpeechColab/GigaSpeech gives it.
    """
    for number, audio, recording, segment in _segments(source, "GigaSpeech.json", options.subset):
        text = str(segment.get("text_tn", ""))
        tags = [tag for tag in GARBAGE if tag in text]
        name = str(segment.get("sid", ""))
        if tags:
            yield Rejection(row=number, id=name, reason=f"garbage tag: {tags[0]}")
            continue
        speaker = str(segment.get("speaker", ""))
        about = {"published_text": text, "source": recording.get("source"), "category": recording.get("category")}
        yield _row(number, audio, segment, options, _sentence(text), about, "" if speaker == "N/A" else speaker)


def read_wenetspeech(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads the release; each segment's confidence stays in `extra`, for `min_values` of the filters.

    Raises:
        InputError: WenetSpeech.json is missing or cut off.

    Source:
        Zhang et al., "WenetSpeech", 2022; the format as the repository wenet-e2e/WenetSpeech gives it.
    """
    for number, audio, recording, segment in _segments(source, "WenetSpeech.json", options.subset):
        about = {
            "confidence": segment.get("confidence"),
            "source": recording.get("source"),
            "tags": recording.get("tags"),
        }
        yield _row(number, audio, segment, options, str(segment.get("text", "")), about, "")


def _segments(source: str, name: str, subset: str | None) -> Iterator[tuple[int, str, dict[str, Any], dict[str, Any]]]:
    """Yields number, audio path, recording and segment, for each segment of the subset."""
    import ijson

    index = posixpath.join(source, name) if is_folder(source) else source
    root, number, recordings, subsets = posixpath.dirname(index), 0, 0, set[str]()
    try:
        with open_binary(index) as file:
            for recording in ijson.items(file, "audios.item", use_float=True):
                recordings += 1
                audio = posixpath.join(root, str(recording["path"]))
                for segment in recording["segments"]:
                    number += 1
                    names = {str(part).strip("{}") for part in segment.get("subsets", [])}
                    if subset is None or subset.upper() in names:
                        yield number, audio, recording, segment
                    subsets |= names
    except (ijson.JSONError, KeyError, TypeError) as error:
        raise InputError(f"{index}: damaged after {recordings} recordings ({error!r}); download it again") from error
    if not recordings:
        raise InputError(f"{index}: lists no recordings under 'audios'")
    if subset is not None and subset.upper() not in subsets:
        raise InputError(f"{index}: has no subset {subset}; it has {', '.join(sorted(subsets)) or 'none'}")


def _row(
    number: int,
    audio: str,
    segment: dict[str, Any],
    options: ImportOptions,
    transcript: str,
    about: dict[str, Any],
    speaker: str,
) -> Row | Rejection:
    name = str(segment.get("sid", ""))
    try:
        offset_s, end_s = float(segment["begin_time"]), float(segment["end_time"])
    except (KeyError, TypeError, ValueError):
        return Rejection(row=number, id=name, reason="no times: begin_time and end_time must be seconds")
    if not 0 <= offset_s < end_s:
        return Rejection(row=number, id=name, reason=f"no times: {offset_s:g} to {end_s:g} s is no span")
    return make_row(
        number,
        name,
        audio=audio,
        language=options.language,
        transcript=transcript,
        offset_s=offset_s,
        duration_s=round(end_s - offset_s, 6),
        speaker=speaker,
        extra={key: value for key, value in about.items() if value is not None},
    )


def _sentence(published: str) -> str:
    text = published
    for tag, mark in MARKS.items():
        text = text.replace(f" {tag}", mark).replace(tag, mark)
    text = FIRST_PERSON.sub("I", " ".join(text.split()).lower())
    return SENTENCE_START.sub(lambda match: match[0].upper(), text)
