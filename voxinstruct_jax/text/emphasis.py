"""Which words of the content an instruction asks to stress: `stress "never"`, "the last word", `重读“三点”`.

A small voice hardly learns from a few hundred clips that a word named in the description is the same as one in the
content, so the link is made by rule. It is made only where the description asks for stress and what it names stands in
the content; where in doubt nothing is found. Read `stressed_spans` first.
"""

import functools
import re
from collections.abc import Iterator, Sequence

from voxinstruct_jax.text.content import Content, quoted_spans, spoken_content
from voxinstruct_jax.text.words import Word, split_words

__all__ = ["RULE_VERSION", "STRESS_PATTERNS", "asks_for_stress", "stressed_spans"]

_MAX_REQUESTS = 16
_WINDOW = 80
"""Characters before a request that are looked at; it bounds the time that odd texts take."""
RULE_VERSION = 2
"""Raise it when anything here but `STRESS_PATTERNS` may find other words: the tokenizer's fingerprint follows both."""
_QUOTED, _CONTENT = "\x02", "\x00"
"""Stand for the characters of quoted words and of the content, so that neither is read as a request."""
_MARK = rf"[{_QUOTED}{_CONTENT}\"“”'‘’「」『』«»]"
_THE_WORD = rf"\s+(?:{_MARK}|the\b|both\b|that\b|each\b)"
STRESS_PATTERNS: tuple[str, ...] = (
    r"\bstress(?:es|ing)?\b",
    rf"\bstressed\s+(?:words?|parts?)\b|(?:\b(?:be|gets?)|{_MARK}\s*(?:is|are))\s+(?:\w+ly\s+)?stressed\b",
    r"\bemphasi[sz](?:es?|ed|ing)\b|\bemphasis\b",
    r"\baccentuat(?:es?|ed|ing)\b",
    rf"\baccent(?:s|ing)?\b(?=\s+(?:(?:falls?|goes|lies|sits|is)\s+)?(?:on|upon)\b|{_THE_WORD})"
    r"|\b(?:tak|carr|bear|gett?)(?:es?|s|ies|ing|y|ying)?\s+the\s+(?:main\s+)?accent\b",
    r"\bprominence\b",
    r"\bhighlight(?:s|ed|ing)?\b",
    r"\bunder(?:lin|scor)(?:es?|ed|ing)\b",
    r"\bweight\s+(?:falls\s+|goes\s+|is\s+)?(?:on|upon|to)\b|\bweight\s+(?:\w+\s+){0,6}falls?\s+(?:on|upon)\b|\b(?:extra|more|added|special|particular|full)\s+weight\b",
    r"\b(?:more|extra)\s+force\s+(?:on|upon)\b",
    r"\blean(?:s|ing)?\s+(?:\w+\s+){0,2}(?:on|into|upon)\b",
    rf"\bhit(?:s|ting)?\b(?={_THE_WORD}|(?:\s+\S+){{1,4}}?\s+hard)",
    r"\bpunch(?:es|ing)?\b|\boomph\b",
    r"\b(?:hammer|driv)(?:es?|s|ing)?\s+home\b",
    r"\bland(?:s|ing)?\s+(?:\w+\s+)?on\b|\bcom(?:es?|ing)\s+down\s+(?:\w+\s+)?on\b",
    r"\b(?:stand|stick|jump)(?:s|ing)?\s+out\b(?!\s+(?:his|her|their|its|my|your)\b)|\bpop(?:s|ping)?\b(?:\s+out\b)?|\bnotice\b",
    r"\b(?:bring|singl|pick)(?:es?|s|ing)?\s+out\b",
    r"\b(?:draw|call)(?:s|ing)?\s+attention\s+to\b",
    r"\beverything\s+turns\s+on\b",
    r"\bfocus(?:es|ing)?\s+(?:on|upon)\b|\b(?:important|key|main|focus)\s+words?\b",
    r"\b(?:louder|harder|stronger|heavier)\s+than\s+(?:all\s+)?(?:the\s+)?(?:others?|rest)\b",
    "重读|重音|强调|着重|加重|突出|凸[显出]|咬重|重点|用力|分量|加强语气|注意到|为重(?!点)",
    "[读念说讲喊咬][得的](?:比[^，。；]{1,8})?(?:更|很|特别|格外|稍微|稍|最|非常)?(?:重(?!复)|响|有力)|[读念说讲]重(?!复)",
    "重(?:一点|一些|点儿|点|些)",
)
"""Words that ask for stress on other words, as regular expressions over the description."""
_PLAIN_PATTERNS = (
    r"\b(?:under|from|because\s+of|due\s+to|(?:lots?|full|times?|signs?)\s+of)\s+(?:\w+\s+){0,2}stress\b(?!\s+(?:up)?on)",
    r"\bstress(?:es)?\s+(?:in|of)\s+(?:his|her|their|your|a|the)\s+(?:voice|day|work|life)",
    r"\bstress(?=-)|\b(?:a|the)\s+highlight\b|\bhighlights?\s+of\b",
    r"(?:(?-i:[A-Z])[a-z]+(?:ish|an|ese|ch)|regional|local|foreign|rural|(?:north|south|east|west)ern)\s+accent",
    "强调错|重音乐|重点[中小]学|用力过猛",
)
"""What looks like a request and is none."""
_NEGATED = (
    r"(?<!make )(?<!let )(?<!with )(?<!give )(?<!giving )(?<!word )"
    r"(?:\b(?:no|not|never|without|avoid|avoiding|cannot)|n['’]t)\b(?:\s+(?!but\b)\w+){0,4}\s+$"
    "|(?:不要|不用|不必|不需要?|不得|不应该?|不能|不刻意|不特别|无需|无须|(?<![特分区个])别(?![的人处])|没有?|无(?![论比])|勿|避免)[^，,]{0,5}$"
)
"""Right before a word that asks for stress, in its clause."""
_ASKING = re.compile("|".join(f"(?:{pattern})" for pattern in STRESS_PATTERNS), re.IGNORECASE)
_PLAIN = re.compile("|".join(f"(?:{pattern})" for pattern in _PLAIN_PATTERNS), re.IGNORECASE)
_DENYING = re.compile(_NEGATED, re.IGNORECASE)
_EXCEPTED = re.compile(
    r"(?:\b(?:not|than|instead of|without|except)(?:\s+the\s+word|\s+the|\s+on)?\s*|不是|不要|别)$", re.I
)
"""Right before a quoted word: it is the one that is not meant."""
_SENTENCE_END = re.compile(rf"[.!?;。！？；{_CONTENT}\[\]()（）【】|/]+(?=\s|\W|$|[^\x00-\x7f])|\s[-–—]+\s|——")
_CLAUSE_END = re.compile(rf"[,，{_CONTENT}]|{_SENTENCE_END.pattern}")

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_HAN_NUMBERS = "一二三四五六七八九十"
_NEXT_TO_LAST = r"(?:second|next)[ -]to[ -]last|penultimate"
_ORDINAL = f"(?:{_NEXT_TO_LAST}|opening|last|final|{'|'.join(_ORDINALS)})"
_HAN_ORDINAL = f"(?:(?:倒数)?第[{_HAN_NUMBERS}两]|最[后末]一|头一)"
_BEFORE_QUOTED = re.compile(
    rf"\b(?P<en>{_ORDINAL})\s+(?:(?:occurrence|instance|time)\s+of\s+)?(?:the\s+word\s+)?$"
    rf"|(?P<zh>{_HAN_ORDINAL})[个次处](?:出现)?的?$",
    re.IGNORECASE,
)
_BEHIND_QUOTED = re.compile(
    rf"\W?\s*,?\s*(?:\(\s*)?(?:the\s+)?(?P<en>{_ORDINAL})\s+(?:time|one|occurrence|instance)\b"
    rf"|\W?[字词]?[（(，,]?(?P<zh>{_HAN_ORDINAL})[个次处](?![字词])",
    re.IGNORECASE,
)
_PLACE = re.compile(
    rf"\b(?P<en>{_ORDINAL}(?:(?:\s+word)?(?:\s+and|,)\s+(?:the\s+)?{_ORDINAL})*)\s+(?P<word>word|character)\b"
    rf"|(?P<zh>{_HAN_ORDINAL}(?:个[字词]?[和、]{_HAN_ORDINAL})*)个(?P<unit>[字词])",
    re.IGNORECASE,
)
_PLACED_ONE = re.compile(rf"{_ORDINAL}|{_HAN_ORDINAL}", re.IGNORECASE)
_NUMBERS = ("one", "two", "three", "four", "five")
_AT_AN_END = re.compile(
    rf"\b(?P<en>first|opening|last|final|closing)\s+(?P<count>{'|'.join(_NUMBERS[1:])})\s+(?P<word>word|character)s\b"
    r"|(?P<zh>前|开头|最后|末尾)面?的?(?P<number>[两二三四五])个?(?P<unit>[字词])",
    re.IGNORECASE,
)
_OF_SEVERAL = re.compile(
    rf"\b(?P<en>{_ORDINAL})\s+(?P<word>[a-z][\w'’-]*)|\b(?P<early>[a-z][\w'’-]*)\s+the\s+(?P<time>{_ORDINAL})\s+time\b"
    rf"|(?P<zh>{_HAN_ORDINAL})[个次处]的?(?P<han>[^\W\da-z_]{{1,4}})",
    re.I,
)

_LINKS = "on|upon|onto|to|for|of|into|is|are|be|falls?|goes|lies|the|words?|phrases?|names?|numbers?"
_ADVERBS = "both|each|hard|harder|heavily|strongly|especially|only|just"
_LEADS = tuple(
    re.compile(rf"(?:[\s:=?：]|\b(?:{words})\b)*", re.IGNORECASE) for words in (_LINKS, f"{_LINKS}|{_ADVERBS}")
)
"""What may stand between the request and the word; "stress only" means "only" where nothing follows."""
_CALLED = re.compile(r"\b(?:words?|phrase|name|number|pronoun|verb|noun)\s+", re.IGNORECASE)
_TRAIL = re.compile(
    r"(?:\s|\b(?:really|clearly|should|must|has|have|needs?|ought|to|be|is|gets?|carry|carries|takes?|bears?|the|one|that|"
    r"which|an?|extra|more|main|strong|big|heavy|pronounced|all|most|of|some)\b)*$",
    re.IGNORECASE,
)
_ANCHOR = re.compile(
    r"(?:^|,|\b(?:makes?|making|lets?|letting|gives?|giving|want|that|with|have|sure|so|words?|name|phrase|and))\s*$",
    re.I,
)
_NEXT = re.compile(r"\s*(?:,\s*and\b|,|\band\b|&|\bplus\b)\s*(?:on\s+)?(?:the\s+words?\s+)?", re.IGNORECASE)
_ENDS_THERE = re.compile(rf"\s*(?:$|[,.;!?，。{_CONTENT}]|(?:in|and|when)\b)", re.IGNORECASE)
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an the of to in on at by for with and or as it its is are was be been do does did that this i you he she we "
        "they me him her us them my your his our their so if but not no both each hard only just",
    )
)
"""Words that a description is full of: named without quotes only where nothing follows them."""

_HAN_LEAD = re.compile(
    "(?:[：:=\\s]|等于|一下|放[在到]|落[在到]|砸[在到]|给到|打在|要?压在|是|在|为|那个|这个|的(?:词|字)(?:是|为)?|词|的)*"
)
_HAN_REST = re.compile(rf"[^，,：:。；;！？!?{_CONTENT}{_QUOTED}\[\]()（）【】|/]*")
_HAN_NAMED = re.compile(
    "(?:上面|上边|之上|上|这里|那里|这?[几一二两三四五六]?个?(?:字|词|词语|数字|地方)|[一二两三四五六]字|一词|这|\\s)*+$"
)
_HAN_MARKED = re.compile("^.*(?:请|把|将|让|给|在|对|读到|念到|说到|注意)")
_HAN_TRAIL = re.compile(
    "(?:时候?|的时候|要|得|都|也|应该?|必须|需要|稍微?|特别|格外|再|用|更|最|很|加个|加|下|听起来|[读念说讲]得?|着重|重重地|\\s)*+$"
)
_HAN_JOINTS = re.compile("以及|还有|[和与跟及、]")
_SPELT_OUT = re.compile(r"\b(?:capitals?|capitali[sz]ed|caps|upper[- ]?case)\b|大写", re.IGNORECASE)
_CAPITALS = re.compile(r"\b[A-Z][A-Z'’]*[A-Z]\b")
_STARRED = re.compile(r"(?<![A-Za-z\d*_])(\*{1,2}|_{1,2})(?=[^\s*_])(?P<word>[^*_]+)(?<=[^\s*_])\1(?![A-Za-z\d*_])")
_CONTRASTED = re.compile(
    r"\bit(?:\s+is|['’]s|\s+was)\s+(?:the\s+)?(?P<en>[\w'’-]+)\s*,?\s*(?:and\s+)?(?:not|rather\s+than)\s+(?:the\s+)?"
    r"(?P<other>[a-z][\w'’-]*)|是(?P<zh>[^\W\da-z_]{1,6}?)[，,]?而?不是(?P<rather>[^\W\da-z_]{1,6})",
    re.IGNORECASE,
)
"""It is this, not that."""

Run = range
"""Indices of neighbouring words of the content."""


def asks_for_stress(text: str) -> bool:
    """Tells whether a description asks for stress on some word; what it quotes does not count.

    Args:
        text: An instruction; without quotes all of it is description.
    """
    if not _ASKING.search(text):  # nearly all instructions end here
        return False
    return bool(_requests(_blanked(text, spoken_content(text)))[0])


@functools.lru_cache(maxsize=4096)
def stressed_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Finds the words of the content that the description asks to stress.

    They are named in quotes, without quotes, by which of several ("the second “again”"), by their place ("the last
    word"), by asterisks or underscores around them, or against what it is not ("so that one hears it is Thursday, not
    Tuesday"). Words named and not found in the content count for nothing, nor does a name
    that fits all of it.

    Args:
        text: A normalised instruction with its content in quotes.

    Returns:
        Start and end in `text` of each stretch of stressed words, in order, apart from one another; none where no
        stress is asked for.
    """
    if not (_ASKING.search(text) or _CONTRASTED.search(text)):  # nearly all instructions end here
        return ()
    content = spoken_content(text)
    if content.text is None:
        return ()
    blanked = _blanked(text, content)
    asked, denied = _requests(blanked)
    words = split_words(content.text)
    runs = _contrasted(blanked, words)
    if asked:
        named = _named_in_quotes(text, blanked, content, words, asked, denied)
        named = named or _named_without_quotes(blanked, words, asked) or _written_out(text, blanked, content, words)
        runs = named or runs
    chosen = sorted({index for run in runs for index in run})
    if not chosen or len(chosen) == len(words) > 1:
        return ()
    return tuple((content.start + start, content.start + end) for start, end in _stretches(content.text, words, chosen))


def _stretches(content: str, words: Sequence[Word], chosen: Sequence[int]) -> list[tuple[int, int]]:
    """Joins neighbours with nothing but a space between them."""
    found: list[tuple[int, int]] = []
    for index in chosen:
        word = words[index]
        if found and content[found[-1][1] : word.start] in ("", " "):
            found[-1] = (found[-1][0], word.end)
        else:
            found.append((word.start, word.end))
    return found


def _blanked(text: str, content: Content) -> str:
    """The text, as long as before, with marks in place of the content, its quotes, and other quoted words."""
    if content.text is not None:
        start, end = content.start - 1, content.end + 1
        text = f"{text[:start]}{_CONTENT * (end - start)}{text[end:]}"
    for start, end in quoted_spans(text):
        if _CONTENT not in text[start:end]:
            text = f"{text[:start]}{_QUOTED * (end - start)}{text[end:]}"
    return text


def _requests(blanked: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where stress is asked for, and where it is asked not to be."""
    plain = [found.span() for found in _PLAIN.finditer(blanked)]
    asked: list[tuple[int, int]] = []
    denied: list[tuple[int, int]] = []
    for found in _ASKING.finditer(blanked):
        start, end = found.span()
        if any(first < end and start < last for first, last in plain):
            continue
        clause, _ = _around(_CLAUSE_END, blanked, start)
        (denied if _DENYING.search(blanked[max(clause, start - _WINDOW) : start]) else asked).append((start, end))
    return asked[:_MAX_REQUESTS], denied[:_MAX_REQUESTS]


def _around(ends: re.Pattern[str], text: str, at: int) -> tuple[int, int]:
    """Start and end of the sentence or clause that a character is in."""
    start, end = 0, len(text)
    for found in ends.finditer(text):
        if found.end() <= at:
            start = found.end()
        elif found.start() >= at:
            return start, found.start()
    return start, end


# --- words in quotes, and places -------------------------------------------------------------------------------------


def _named_in_quotes(
    text: str,
    blanked: str,
    content: Content,
    words: Sequence[Word],
    asked: Sequence[tuple[int, int]],
    denied: Sequence[tuple[int, int]],
) -> list[Run]:
    """Words in quotes, of several ones, and by place; those of sentences that ask for stress, if there are any."""
    sentences = {_around(_SENTENCE_END, blanked, start) for start, _ in asked}
    refused = {_around(_CLAUSE_END, blanked, start) for start, _ in denied}
    refused -= {_around(_CLAUSE_END, blanked, start) for start, _ in asked}
    quoted: list[tuple[int, Run]] = []
    for start, end in quoted_spans(text):
        inside = content.start <= start and end <= content.end
        around = start <= content.start and content.end <= end
        if inside or around or _EXCEPTED.search(blanked[: start - 1]):
            continue
        if not any(first <= start < last for first, last in refused):
            quoted += [(start, run) for run in _quoted_runs(blanked, start, end, text[start:end], words)]
    near = [(at, run) for at, run in quoted if any(first <= at < last for first, last in sentences)]
    near += [each for sentence in sentences for each in _placed(blanked, sentence, words)]
    return [run for _, run in near or quoted]


def _quoted_runs(blanked: str, start: int, end: int, named: str, words: Sequence[Word]) -> list[Run]:
    found = _occurrences(words, named)
    if len(found) < 2:
        return found
    which = _BEFORE_QUOTED.search(blanked[: start - 1]) or _BEHIND_QUOTED.match(blanked[end:])
    if which is None:
        return found
    index = _index(which["en"] or which["zh"], len(found))
    return [found[index]] if index < len(found) else found


def _placed(blanked: str, sentence: tuple[int, int], words: Sequence[Word]) -> Iterator[tuple[int, Run]]:
    """Where a place is named in this sentence, and which words are meant."""
    for found in _PLACE.finditer(blanked, *sentence):
        ahead = blanked[found.end() : found.end() + 3].strip(" :“\"'‘「『«")
        if ahead.startswith(_QUOTED) or not _countable(found, words):  # a quoted word that follows says more
            continue
        for which in _PLACED_ONE.findall(found["en"] or found["zh"]):
            index = _index(which, len(words))
            yield found.start(), range(index, min(index + 1, len(words)))
    for found in _AT_AN_END.finditer(blanked, *sentence):
        number = (found["count"] or found["number"]).lower().replace("两", "二")
        size = 1 + (_NUMBERS.index(number) if found["en"] else _HAN_NUMBERS.index(number))
        if size < len(words) and _countable(found, words):
            at_start = (found["en"] or found["zh"]).lower() in ("first", "opening", "前", "开头")
            yield found.start(), range(size) if at_start else range(len(words) - size, len(words))
    for found in _OF_SEVERAL.finditer(blanked, *sentence):
        run = _of_several(found, words)
        if run is not None:
            yield found.start(), run


def _of_several(named: re.Match[str], words: Sequence[Word]) -> Run | None:
    """The second "tea" of two; the longest Mandarin name that the content holds more than once."""
    name = named["word"] or named["early"] or named["han"]
    for length in range(len(name), 0, -1) if named["han"] else (len(name),):
        found = _occurrences(words, name[:length])
        index = _index(named["en"] or named["time"] or named["zh"], len(found))
        if 1 < len(found) > index:
            return found[index]
        if found:
            break
    return None


def _countable(place: re.Match[str], words: Sequence[Word]) -> bool:
    """Whether all readers count alike: they don't agree what a Mandarin word is."""
    han = [_is_han(word.text) for word in words]
    by_character = (place["word"] or "").lower() == "character" or place["unit"] == "字"
    return all(han) if by_character else not any(han)


def _index(ordinal: str, count: int) -> int:
    """Of the first, second or last of so many; `count` where there are too few."""
    ordinal = ordinal.lower()
    if ordinal in ("last", "final") or ordinal.startswith("最"):
        return count - 1
    if re.fullmatch(_NEXT_TO_LAST, ordinal):
        return count - 2 if count > 1 else count
    if ordinal == "opening":
        return 0
    if ordinal in _ORDINALS:
        return min(_ORDINALS.index(ordinal), count)
    number = _HAN_NUMBERS.index("二" if ordinal[-1] == "两" else ordinal[-1])
    if ordinal.startswith("倒"):
        return count - number - 1 if number < count else count
    return min(number, count)


def _is_han(word: str) -> bool:
    return len(word) == 1 and word >= "\u3007"


def _occurrences(words: Sequence[Word], named: str) -> list[Run]:
    """Where these words stand in the content, in any case; longer words don't hold them."""
    wanted = [_plain(word.text) for word in split_words(named)]
    plain, size = [_plain(word.text) for word in words], len(wanted)
    starts = range(len(plain) - size + 1) if wanted else ()
    found = [range(start, start + size) for start in starts if plain[start : start + size] == wanted]
    return [run for at, run in enumerate(found) if at == 0 or run.start >= found[at - 1].stop or size == 1]


def _plain(word: str) -> str:
    return word.casefold().replace("’", "'")


# --- words without quotes --------------------------------------------------------------------------------------------


def _named_without_quotes(blanked: str, words: Sequence[Word], asked: Sequence[tuple[int, int]]) -> list[Run]:
    runs: list[Run] = []
    for start, end in asked:
        first, last = _around(_SENTENCE_END, blanked, start)
        if not blanked[end:last].strip() and blanked[last : last + 1] == "?":  # "Emphasis? On Friday."
            last = _around(_SENTENCE_END, blanked, min(last + 1, len(blanked)))[1]
        if blanked[start:end].isascii():
            runs += _ahead(blanked, end, last, words) or _behind(blanked, first, start, words)
        else:
            runs += _ahead_in_mandarin(blanked, end, words) or _behind_in_mandarin(blanked, start, words)
    return runs


def _ahead(blanked: str, start: int, end: int, words: Sequence[Word]) -> list[Run]:
    """English: "with the stress on never"."""
    runs: list[Run] = []
    called = _CALLED.search(blanked, start, end)
    leads = [(lead.end(), False) for each in _LEADS if (lead := each.match(blanked, start, end))]
    for at, sure in ([(called.end(), True)] if called else []) + leads:
        while at < end and (found := _run_at(blanked, at, end, words)):
            run, at = found
            common = all(_plain(words[index].text) in _COMMON for index in run)
            if common and not sure and not _ENDS_THERE.match(blanked, at, end):
                break
            runs += _occurrences(words, " ".join(words[index].text for index in run))
            joint = _NEXT.match(blanked, at, end)
            if joint is None:
                break
            at, sure = joint.end(), False  # what is called a word is the first of them
        if runs:
            break
    return runs


def _run_at(blanked: str, start: int, end: int, words: Sequence[Word]) -> tuple[Run, int] | None:
    """The longest run of content that the text goes on with, and where it ends."""
    told = split_words(blanked[start:end])
    if not told or told[0].start > 0:
        return None
    best = None
    for size in range(1, min(len(told), len(words)) + 1):
        found = _occurrences(words, blanked[start : start + told[size - 1].end])
        if not found:
            break
        best = found[0], start + told[size - 1].end
    return best


def _behind(blanked: str, start: int, end: int, words: Sequence[Word]) -> list[Run]:
    """English: "make never stand out"."""
    start = max(start, end - _WINDOW)
    trail = _TRAIL.search(blanked, start, end)
    end = trail.start() if trail else end
    told = split_words(blanked[start:end])
    if not told or told[-1].end < end - start:
        return []
    for size in range(min(len(told), len(words) - 1), 0, -1):
        at = start + told[-size].start
        found = _occurrences(words, blanked[at:end])
        if found and _ANCHOR.search(blanked[start:at]):
            return found
    return []


def _ahead_in_mandarin(blanked: str, start: int, words: Sequence[Word]) -> list[Run]:
    """Mandarin: 重读三点."""
    lead = _HAN_LEAD.match(blanked, start)
    rest = _HAN_REST.match(blanked, lead.end() if lead else start)
    return _listed(_HAN_NAMED.sub("", rest[0]), words) if rest else []


def _behind_in_mandarin(blanked: str, end: int, words: Sequence[Word]) -> list[Run]:
    """Mandarin: 把三点读重, 三点要重读."""
    start, _ = _around(_CLAUSE_END, blanked, end)
    before = _HAN_TRAIL.sub("", blanked[max(start, end - _WINDOW) : end])
    named = _HAN_NAMED.sub("", before)
    for text in (_HAN_MARKED.sub("", named), named):
        # A single character before the request is as often "you" or "I".
        if len(text.strip()) > 1 or len(before) > len(named):
            runs = _listed(text, words)
            if runs:
                return runs
    return []


def _listed(named: str, words: Sequence[Word]) -> list[Run]:
    """Occurrences of the words named; none unless all of them occur."""
    found = _occurrences(words, named)
    if found:
        return found
    each = [_occurrences(words, _HAN_NAMED.sub("", part)) for part in _HAN_JOINTS.split(named)]
    return [run for runs in each for run in runs] if all(each) else []


def _written_out(text: str, blanked: str, content: Content, words: Sequence[Word]) -> list[Run]:
    """Words written so that they stand out: in *asterisks* or _underscores_, or in capitals in the description."""
    starred = [found.span("word") for found in _STARRED.finditer(text, content.start, content.end)]
    if not starred and _SPELT_OUT.search(blanked):
        starred = [found.span() for found in _CAPITALS.finditer(text, content.start, content.end)]
    if starred:
        spans = [(start - content.start, end - content.start) for start, end in starred]
        return [
            range(index, index + 1)
            for index, word in enumerate(words)
            if any(start <= word.start and word.end <= end for start, end in spans)
        ]
    return [run for found in _CAPITALS.finditer(blanked) for run in _occurrences(words, found[0])]


def _contrasted(blanked: str, words: Sequence[Word]) -> list[Run]:
    """What the content says, and the description sets against what it doesn't say."""
    runs: list[Run] = []
    for found in _CONTRASTED.finditer(blanked):
        if not _occurrences(words, found["other"] or found["rather"]):
            runs += _occurrences(words, found["en"] or found["zh"])
    return runs
