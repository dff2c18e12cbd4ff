"""Instructions in the form of fields, as programs write them: JSON, XML, calls, `key = "value"`.

There quotes stand around keys and around what describes the voice too, where a reader of prose takes them for speech.
Read `plain_fields`.
"""

import json
import re

from voxinstruct_jax.text.content import quoted_spans, spoken_content
from voxinstruct_jax.text.emphasis import asks_for_stress
from voxinstruct_jax.text.seams import CONTENT_LABELS
from voxinstruct_jax.text.words import letters

__all__ = ["plain_fields", "quoted_words", "with_colons"]

_MARK = r"[\"“”'‘’]"
_KEY_BEFORE = re.compile(rf"(?P<key>[\w-]+){_MARK}?\s*[:：=]\s*$")
_COLON_BEHIND = re.compile(r"\s*[:：=]")
_EQUALS = re.compile(
    r"(\b(?:gender|sex|speaker|voice|pitch|register|f0|energy|volume|loudness|intensity|speed|rate|tempo|pace)"
    r"|性别|说话人|音高|音调|声调|音量|响度|语速|速度|节奏)\s*={1,2}\s*(?=\w)",
    re.IGNORECASE,
)
_LABEL = re.compile(rf"(?:{CONTENT_LABELS})", re.IGNORECASE)


def plain_fields(instruction: str) -> str:
    """Takes the quotes off keys and values, so that what is to be spoken alone is quoted.

    What is to be spoken is the value of a key that says so ("text", "内容"), or else what `spoken_content` finds. Words
    of it that are to be stressed keep their quotes.

    Args:
        instruction: As the user wrote it.

    Returns:
        The instruction with fewer quote marks; as it was where nothing but the content is quoted.
    """
    instruction = _unescaped(instruction)
    spans = [span for span in quoted_spans(instruction) if instruction[span[0] : span[1]].strip()]
    if len(spans) < 2:
        return instruction
    values = {span: found["key"] for span in spans if (found := _KEY_BEFORE.search(instruction[: span[0] - 1]))}
    labelled = [span for span, key in values.items() if _LABEL.fullmatch(key)]
    content = spoken_content(instruction)
    start, end = labelled[0] if len(labelled) == 1 else (content.start, content.end)
    said = letters(instruction[start:end])
    dropped: set[int] = set()
    for first, last in spans:
        apart = last < start or end < first
        is_field = (first, last) in values or _COLON_BEHIND.match(instruction, last + 1)
        key = values.get((first, last))
        named = letters(instruction[first:last]) in said and (key is None or asks_for_stress(key))
        if apart and is_field and not named:
            dropped |= {first - 1, last}
    return "".join(character for at, character in enumerate(instruction) if at not in dropped)


def with_colons(instruction: str) -> str:
    """Puts a colon for the sign of `pitch = low`, outside of what is to be spoken: so the reader knows fields best."""
    content = spoken_content(instruction)
    before, after = instruction[: content.start], instruction[content.end :]
    return _EQUALS.sub(r"\1: ", before) + instruction[content.start : content.end] + _EQUALS.sub(r"\1: ", after)


def quoted_words(instruction: str) -> str | None:
    """The words to be spoken of an instruction in prose or fields; None where it quotes none."""
    return spoken_content(plain_fields(instruction)).text


def _unescaped(instruction: str) -> str:
    """A JSON object in the characters that its escapes stand for; anything else as it is."""
    try:
        fields = json.loads(instruction) if instruction.lstrip().startswith("{") else None
    except (ValueError, RecursionError):  # the latter of a thousand brackets
        return instruction
    if not isinstance(fields, dict):
        return instruction
    return json.dumps(fields, ensure_ascii=False).replace('\\"', "'").replace("\\n", " ")
