"""The rules that turn written forms (dates, money, units ...) into words, in the order in which they apply.

A rule is a pattern and a reader. The reader gets the match and whether to speak Mandarin, and returns the words, or
None to leave the match to later rules. Some early rules only rewrite ("10-20%" to "10 to 20%") and leave the digits to
the rules behind them. `normalizer` applies them and picks the language. Read `RULES` first.
"""

import dataclasses
import re
from collections.abc import Callable

from voxinstruct_jax.text import number_words as words

__all__ = ["RULES", "Rule"]

Match = re.Match[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One written form.

    Attributes:
        pattern: What it looks like.
        read: Match and "in Mandarin?" to words; None leaves the match alone.
    """

    pattern: re.Pattern[str]
    read: Callable[[Match, bool], str | None]


_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
_MONTH_NAMES = "January February March April May June July August September October November December"
_MONTHS = _MONTH_NAMES.split()
_MONTH = r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|" + "|".join(_MONTHS) + r")\b\.?"
_MEASURE_WORDS = "个只条张本位次天年块元岁杯件种点名段首家台辆匹头把双对倍周碗瓶小分遍句口"
_CURRENCIES = {
    "$": ("dollar", "cent", "美元"),
    "£": ("pound", "pence", "英镑"),
    "€": ("euro", "cent", "欧元"),
    "¥": ("yuan", "", "元"),
}
_MAGNITUDES = {
    "k": ("thousand", "千"),
    "thousand": ("thousand", "千"),
    "m": ("million", "百万"),
    "million": ("million", "百万"),
    "b": ("billion", "十亿"),
    "bn": ("billion", "十亿"),
    "billion": ("billion", "十亿"),
    "trillion": ("trillion", "万亿"),
}
_UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour", "公里每小时"),
    "m/s": ("meter per second", "meters per second", "米每秒"),
    "mph": ("mile per hour", "miles per hour", "英里每小时"),
    "km²": ("square kilometer", "square kilometers", "平方公里"),
    "m²": ("square meter", "square meters", "平方米"),
    "m³": ("cubic meter", "cubic meters", "立方米"),
    "km": ("kilometer", "kilometers", "公里"),
    "cm": ("centimeter", "centimeters", "厘米"),
    "mm": ("millimeter", "millimeters", "毫米"),
    "m": ("meter", "meters", "米"),
    "kg": ("kilogram", "kilograms", "公斤"),
    "mg": ("milligram", "milligrams", "毫克"),
    "g": ("gram", "grams", "克"),
    "ml": ("milliliter", "milliliters", "毫升"),
    "mL": ("milliliter", "milliliters", "毫升"),
    "L": ("liter", "liters", "升"),
    "lbs": ("pound", "pounds", "磅"),
    "lb": ("pound", "pounds", "磅"),
    "oz": ("ounce", "ounces", "盎司"),
    "ft": ("foot", "feet", "英尺"),
    "°C": ("degree Celsius", "degrees Celsius", "摄氏度"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit", "华氏度"),
    "°": ("degree", "degrees", "度"),
    "kHz": ("kilohertz", "kilohertz", "千赫"),
    "Hz": ("hertz", "hertz", "赫兹"),
    "dB": ("decibel", "decibels", "分贝"),
    "kW": ("kilowatt", "kilowatts", "千瓦"),
    "GB": ("gigabyte", "gigabytes", "吉字节"),
    "MB": ("megabyte", "megabytes", "兆字节"),
    "TB": ("terabyte", "terabytes", "太字节"),
    "KB": ("kilobyte", "kilobytes", "千字节"),
    "ms": ("millisecond", "milliseconds", "毫秒"),
    "min": ("minute", "minutes", "分钟"),
    "sec": ("second", "seconds", "秒"),
    "hrs": ("hour", "hours", "小时"),
    "hr": ("hour", "hours", "小时"),
    "h": ("hour", "hours", "小时"),
    "s": ("second", "seconds", "秒"),
    "USD": ("dollar", "dollars", "美元"),
    "EUR": ("euro", "euros", "欧元"),
    "GBP": ("pound", "pounds", "英镑"),
    "CNY": ("yuan", "yuan", "元"),
    "RMB": ("yuan", "yuan", "元"),
}
_SYMBOLS = {
    "&": ("and", "和"),
    "@": ("at", "艾特"),
    "+": ("plus", "加"),
    "=": ("equals", "等于"),
    "×": ("times", "乘"),
    "÷": ("divided by", "除以"),
    "%": ("percent", "百分号"),
    "°": ("degrees", "度"),
    "²": ("squared", "的平方"),
    "³": ("cubed", "的立方"),
}
_ABBREVIATIONS = {
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Miz",
    "Dr": "Doctor",
    "Prof": "Professor",
    "vs": "versus",
    "e.g": "for example",
    "i.e": "that is",
}


def _decimal(number: str, mandarin: bool) -> str:
    plain = number.replace(",", "")
    return words.mandarin_decimal(plain) if mandarin else words.english_decimal(plain)


def _cardinal(number: str, mandarin: bool) -> str:
    return _decimal(number.partition(".")[0], mandarin)


def _read_digits(match: Match, mandarin: bool) -> str:
    return words.mandarin_digits(match[0]) if mandarin else words.english_digits(match[0])


def _read_abbreviation(match: Match, mandarin: bool) -> str | None:
    return _ABBREVIATIONS.get(match[1])


def _read_et_cetera(match: Match, mandarin: bool) -> str:
    ends_here = not match.string[match.end() :].strip(" \"'”’」』»")
    return "et cetera." if ends_here else "et cetera"


def _date_words(year: str, month: int, day: int, mandarin: bool) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    if mandarin:
        when = f"{words.mandarin_cardinal(month)}月{words.mandarin_cardinal(day)}日"
        return f"{words.mandarin_digits(year)}年{when}"
    return f"{_MONTHS[month - 1]} {words.english_ordinal(day)}, {_english_year(year)}"


def _english_year(year: str) -> str:
    return words.english_year(int(year)) if len(year) == 4 and year >= "1000" else words.english_digits(year)


def _read_iso_date(match: Match, mandarin: bool) -> str | None:
    return _date_words(match[1], int(match[2]), int(match[3]), mandarin)


def _read_slash_date(match: Match, mandarin: bool) -> str | None:
    first, second = int(match[1]), int(match[2])
    month, day = (second, first) if first > 12 else (first, second)
    return _date_words(match[3], month, day, mandarin)


def _month_name(written: str) -> str:
    return next(month for month in _MONTHS if month.startswith(written[:3]))


def _read_month_day(match: Match, mandarin: bool) -> str | None:
    if not 1 <= int(match[2]) <= 31:
        return None
    year = f", {_english_year(match[3])}" if match[3] else ""
    return f"{_month_name(match[1])} {words.english_ordinal(int(match[2]))}{year}"


def _read_day_month(match: Match, mandarin: bool) -> str | None:
    if not 1 <= int(match[1]) <= 31:
        return None
    article = "" if match.string[: match.start()].endswith("the ") else "the "
    year = f", {_english_year(match[3])}" if match[3] else ""
    return f"{article}{words.english_ordinal(int(match[1]))} of {_month_name(match[2])}{year}"


def _read_mandarin_year(match: Match, mandarin: bool) -> str:
    return words.mandarin_digits(match[1])


def _read_clock(match: Match, mandarin: bool) -> str | None:
    hour, minute, second = int(match[1]), int(match[2]), match[3]
    if hour > 24 or minute > 59 or (second and int(second) > 59):
        return None
    half = match[4].lower() if match[4] else None
    if mandarin:
        parts = [words.mandarin_cardinal(hour), "点"]
        if minute or second:
            parts += ["零" if minute < 10 else "", words.mandarin_cardinal(minute) if minute else "", "分"]
        if second:
            parts += [words.mandarin_cardinal(int(second)), "秒"]
        return {"a": "上午", "p": "下午", None: ""}[half] + "".join(parts)
    spoken = words.english_cardinal(hour)
    if minute:
        spoken += f" {'oh ' if minute < 10 else ''}{words.english_cardinal(minute)}"
    elif not half and not second:
        spoken += " o'clock" if 1 <= hour <= 12 else " hundred"
    if second:
        spoken += f" and {words.english_cardinal(int(second))} seconds"
    return f"{spoken} {half}.m." if half else spoken


def _read_hour(match: Match, mandarin: bool) -> str | None:
    half = match[2].lower()
    if mandarin:
        return {"a": "上午", "p": "下午"}[half] + words.mandarin_cardinal(int(match[1])) + "点"
    return f"{words.english_cardinal(int(match[1]))} {half}.m."


def _read_money(match: Match, mandarin: bool) -> str:
    unit, cent, mandarin_unit = _CURRENCIES[match[1]]
    number, magnitude = match[2].replace(",", ""), match[3] or ""
    if mandarin or magnitude in ("万", "亿", "万亿"):
        scale = _MAGNITUDES[magnitude.lower()][1] if magnitude.lower() in _MAGNITUDES else magnitude
        return _decimal(number, True) + scale + mandarin_unit
    whole, _, fraction = number.partition(".")
    plural = unit if unit == "yuan" else unit + "s"
    if magnitude:
        return f"{_decimal(number, False)} {_MAGNITUDES[magnitude.lower()][0]} {plural}"
    if len(fraction) != 2 or not cent:
        return f"{_decimal(number, False)} {unit if number == '1' else plural}"
    cents = int(fraction)
    spoken = [f"{_decimal(whole, False)} {unit if whole == '1' else plural}"] if int(whole[:18]) or not cents else []
    if cents:
        spoken.append(f"{words.english_cardinal(cents)} {cent}{'s' if cent == 'cent' and cents > 1 else ''}")
    return " and ".join(spoken)


def _read_percent(match: Match, mandarin: bool) -> str:
    number = _decimal(match[1], mandarin)
    return f"百分之{number}" if mandarin else f"{number} percent"


def _read_unit(match: Match, mandarin: bool) -> str:
    singular, plural, mandarin_unit = _UNITS[match[2]]
    if mandarin:
        number = "两" if match[1] == "2" else _decimal(match[1], True)
        return number + mandarin_unit
    return f"{_decimal(match[1], False)} {singular if match[1] == '1' else plural}"


def _read_range(match: Match, mandarin: bool) -> str:
    return f"{match[1]}到{match[2]}" if mandarin else f"{match[1]} to {match[2]}"


def _read_minus(match: Match, mandarin: bool) -> str:
    return "负" if mandarin else "minus "


def _read_telephone(match: Match, mandarin: bool) -> str | None:
    if re.fullmatch(r"(?:1[0-9]|20)[0-9]{2}-(?:1[0-9]|20)[0-9]{2}", match[0]):
        return None
    groups = re.findall(r"[0-9]+", match[0])
    plus = "+" in match[0]
    if mandarin:
        return ("加" if plus else "") + "，".join(words.mandarin_digits(group, telephone=True) for group in groups)
    return ("plus " if plus else "") + ", ".join(words.english_digits(group) for group in groups)


def _read_ordinal(match: Match, mandarin: bool) -> str | None:
    if len(match[1]) > words.MAX_CARDINAL_DIGITS:
        return None
    return f"第{words.mandarin_cardinal(int(match[1]))}" if mandarin else words.english_ordinal(int(match[1]))


def _read_decade(match: Match, mandarin: bool) -> str:
    if mandarin:
        digits = match[1]
        return (words.mandarin_digits(digits) if len(digits) == 4 else words.mandarin_cardinal(int(digits))) + "年代"
    spoken = words.english_year(int(match[1])) if len(match[1]) == 4 else words.english_cardinal(int(match[1]))
    return spoken[:-1] + "ies" if spoken.endswith("y") else spoken + "s"


def _read_fraction(match: Match, mandarin: bool) -> str | None:
    whole, top, bottom = match[1], int(match[2]), int(match[3])
    if mandarin:
        spoken = f"{words.mandarin_cardinal(bottom)}分之{words.mandarin_cardinal(top)}"
        return f"{_cardinal(whole, True)}又{spoken}" if whole else spoken
    if (top, bottom) == (24, 7):
        spoken = "twenty four seven"
    elif top >= bottom or bottom < 2:
        spoken = f"{words.english_cardinal(top)} over {words.english_cardinal(bottom)}"
    else:
        part = {2: "half", 4: "quarter"}.get(bottom) or words.english_ordinal(bottom)
        spoken = f"{words.english_cardinal(top)} {part}{'s' if top > 1 else ''}"
    return f"{_cardinal(whole, False)} and {spoken}" if whole else spoken


def _read_number_sign(match: Match, mandarin: bool) -> str:
    return f"{match[1]}号" if mandarin else f"number {match[1]}"


def _read_number(match: Match, mandarin: bool) -> str:
    written = match[0].replace(",", "")
    if written.count(".") > 1:
        return ("点" if mandarin else " point ").join(_cardinal(part, mandarin) for part in written.split("."))
    whole = written.partition(".")[0]
    by_digit = (len(whole) > 1 and whole[0] == "0") or (len(whole) >= 10 and "," not in match[0])
    if "." not in written and by_digit:
        spell = words.mandarin_digits if mandarin else words.english_digits
        return spell(written)
    if mandarin:
        return _read_mandarin_number(match, written)
    if re.fullmatch(r"(?:19|20)[0-9]{2}", match[0]) or (
        re.fullmatch(r"1[1-8][0-9]{2}", match[0])
        and re.search(r"\b(?:in|since|year|by|until|before|after|from)\s+$", match.string[: match.start()], re.I)
    ):
        return words.english_year(int(written))
    return _decimal(written, False)


def _read_mandarin_number(match: Match, written: str) -> str:
    before, after = match.string[: match.start()], match.string[match.end() :].lstrip(" ")
    counts = after[:1] in _MEASURE_WORDS and not before.endswith("第")
    return "两" if written == "2" and after and counts else _decimal(written, True)


def _read_symbol(match: Match, mandarin: bool) -> str:
    english, chinese = _SYMBOLS[match[0]]
    return chinese if mandarin else f" {english} "


def _rule(pattern: str, read: Callable[[Match, bool], str | None]) -> Rule:
    return Rule(pattern=re.compile(pattern), read=read)


_UNIT_NAMES = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_HALF_DAY = r"(?:([AaPp])(?:[Mm]\b\.?|\.[Mm]\.?))"

RULES = (
    # First, so that no later pattern has to search through thousands of digits from each of them.
    _rule(r"[0-9]{20,}", _read_digits),
    _rule(r"\b(Mrs?|Ms|Dr|Prof|vs)\b\.?(?=\s)", _read_abbreviation),
    _rule(r"\b(e\.g|i\.e)\.", _read_abbreviation),
    _rule(r"\betc\.", _read_et_cetera),
    _rule(r"\bNo\. ?(?=[0-9])", lambda match, mandarin: "number "),
    _rule(r"(?<![0-9])([0-9]{4})[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})(?![0-9])", _read_iso_date),
    _rule(r"(?<![0-9/])([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})(?![0-9/])", _read_slash_date),
    _rule(r"\b" + _MONTH + r" ([0-9]{1,2})(?:st|nd|rd|th)?\b(?:,? ([0-9]{4})\b)?(?![0-9:.,]*[0-9:])", _read_month_day),
    _rule(r"(?<![0-9:.,])\b([0-9]{1,2})(?:st|nd|rd|th)? (?:of )?" + _MONTH + r"(?:,? ([0-9]{4})\b)?", _read_day_month),
    _rule(r"([0-9]{4})[-–—~～]([0-9]{4})(?= ?年)", lambda match, mandarin: f"{match[1]}到{match[2]}"),
    _rule(r"(?<![0-9.,])([0-9]{4})(?=(?:[至到][0-9]{4})? ?年)", _read_mandarin_year),
    _rule(r"([0-9]{1,2}:[0-9]{2}) ?[-–—~～] ?([0-9]{1,2}:[0-9]{2})", _read_range),
    _rule(r"(?<![0-9:])([0-9]{1,2})[:：]([0-9]{2})(?:[:：]([0-9]{2}))?(?![0-9:])(?: ?" + _HALF_DAY + ")?", _read_clock),
    _rule(r"(?<![0-9.,:])([0-9]{1,2}) ?" + _HALF_DAY, _read_hour),
    _rule(
        rf"([$£€¥]) ?({_NUMBER})(?: ?(thousand|million|billion|trillion|bn|[kKmMbB]|万亿|万|亿)(?![A-Za-z]))?",
        _read_money,
    ),
    _rule(
        r"(?<![A-Za-z0-9.,-])\+?(?:[0-9]{1,3}[- ])?(?:\([0-9]{2,4}\) ?|[0-9]{3,4}-)"
        r"(?:[0-9]{3,4}-)?[0-9]{4,8}(?![0-9-])",
        _read_telephone,
    ),
    _rule(r"(?<![A-Za-z0-9.,-])(?:1[3-9][0-9]{9}|\+[0-9]{7,15})(?![0-9.,])", _read_telephone),
    _rule(rf"({_NUMBER}%?) ?[-–—~～−] ?({_NUMBER})(?![-0-9])", _read_range),
    _rule(r"(?<![A-Za-z0-9)\]-])[-−](?=[0-9])", _read_minus),
    _rule(rf"({_NUMBER}) ?%", _read_percent),
    _rule(r"(?<![0-9.,])['’]?([1-9][0-9]{2}0|[2-9]0)['’]?s\b", _read_decade),
    _rule(rf"({_NUMBER})[ -]?({_UNIT_NAMES})(?![A-Za-z0-9'’])", _read_unit),
    _rule(r"(?<![0-9.,])([0-9]+)(?:st|nd|rd|th)\b", _read_ordinal),
    _rule(r"(?<![0-9/.])(?:([0-9]+) )?([0-9]{1,3})/([0-9]{1,3})(?![0-9/.])", _read_fraction),
    _rule(r"[#№] ?([0-9]+)", _read_number_sign),
    _rule(r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)*", _read_number),
    _rule(r"[&@+=×÷%°²³]", _read_symbol),
)
"""In the order in which they apply: the specific before the general."""
