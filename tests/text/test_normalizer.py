import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.text.normalizer import normalize

ENGLISH = {
    "I have 3 cats.": "I have three cats.",
    "1,234,567 people": "one million two hundred thirty four thousand five hundred sixty seven people",
    "It weighs 12.5 kg": "It weighs twelve point five kilograms",
    "1 km and 2 km": "one kilometer and two kilometers",
    "at 100 km/h": "at one hundred kilometers per hour",
    "-5°C outside": "minus five degrees Celsius outside",
    "It costs $5.99!": "It costs five dollars and ninety nine cents!",
    "$1 or £20": "one dollar or twenty pounds",
    "$1.5 million": "one point five million dollars",
    "a €3.50 tea": "a three euros and fifty cents tea",
    "only $0.99": "only ninety nine cents",
    "50% off": "fifty percent off",
    "10-20% less": "ten to twenty percent less",
    "the 1st, 2nd, 3rd and 21st": "the first, second, third and twenty first",
    "March 5, 2024": "March fifth, twenty twenty four",
    "the 5th of May": "the fifth of May",
    "On 2024-03-05 we met": "On March fifth, twenty twenty four we met",
    "on 3/5/2024": "on March fifth, twenty twenty four",
    "in 1999 and 2007": "in nineteen ninety nine and two thousand seven",
    "in 1905": "in nineteen oh five",
    "the 1980s": "the nineteen eighties",
    "in 1492": "in fourteen ninety two",
    "1500 people": "one thousand five hundred people",
    "at 3:05 pm": "at three oh five p.m.",
    "at 3:00": "at three o'clock",
    "at 5pm.": "at five p.m.",
    "from 9:30-10:30": "from nine thirty to ten thirty",
    "call 555-1234": "call five five five, one two three four",
    "agent 007": "agent zero zero seven",
    "1/2 cup": "one half cup",
    "2 1/2 cups": "two and one half cups",
    "½ cup": "one half cup",
    "pi is 3.14": "pi is three point one four",
    "MP3 and 4K": "MP three and four K",
    "version 1.2.3": "version one point two point three",
    "#1 hit": "number one hit",
    "24/7": "twenty four seven",
    "Mr. Smith met Dr. Jones": "Mister Smith met Doctor Jones",
    "A&B": "A and B",
    "😀 hi  there\n\tyou": "hi there you",
    "a\u200bb\u0000c": "abc",
}
MANDARIN = {
    "我有3只猫": "我有三只猫",
    "2个苹果和2块钱": "两个苹果和两块钱",
    "第2个": "第二个",
    "2024年3月5日": "二零二四年三月五日",
    "2024-03-05我们见面": "二零二四年三月五日我们见面",
    "２０２４年": "二零二四年",
    "1990-2000年": "一九九零到二零零零年",
    "下午3:30开会": "下午三点三十分开会",
    "8:05出发": "八点零五分出发",
    "价格是¥99.5": "价格是九十九点五元",
    "一共100元": "一共一百元",
    "卖$5": "卖五美元",
    "增长了50%": "增长了百分之五十",
    "跑了5km": "跑了五公里",
    "买2kg米": "买两公斤米",
    "今天-5℃": "今天负五摄氏度",
    "圆周率是3.14": "圆周率是三点一四",
    "3/4的人": "四分之三的人",
    "打13800138000": "打幺三八零零幺三八零零零",
    "有10010人": "有一万零一十人",
    "他今年25岁": "他今年二十五岁",
    "1.5亿人": "一点五亿人",
    "10到20分钟": "十到二十分钟",
    "第1000000名": "第一百万名",
}
MIXED = {
    '他说"I have 3 cats"，真的': '他说"I have three cats"，真的',
    "He says: “我有3个apple”": "He says: “我有三个apple”",
    "iPhone15发布了": "iPhone十五发布了",
}


@pytest.mark.parametrize(("written", "spoken"), [*ENGLISH.items(), *MANDARIN.items(), *MIXED.items()])
def test_written_forms_are_read_in_the_language_around_them(written, spoken):
    assert normalize(written) == spoken
    assert normalize(spoken) == spoken


def test_quotes_and_punctuation_stay():
    text = "She says: “Well… ‘no’!” — 「真的？」『啊』«si»"
    assert normalize(text) == text


def test_a_number_of_thousands_of_digits_is_read_digit_by_digit():
    assert normalize("7" * 6000) == " ".join(["seven"] * 6000)


WRITTEN = """
3 12 2024 1,000 3.5 007 5% $ ¥ ° °C km kg - / : . , 年 月 个 点 th s pm am a Mr. etc. March
我 的 the " “ ” ' & + @ # 😀 ² ½
"""
FORMS = st.sampled_from(WRITTEN.split())


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(FORMS, st.sampled_from(["", "", " "])), max_size=7))
def test_normalising_twice_changes_nothing_and_leaves_no_digit(pieces):
    once = normalize("".join(form + gap for form, gap in pieces))
    assert normalize(once) == once
    assert not any(character.isdecimal() for character in once)


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=20))
def test_any_unicode_normalises_idempotently(text):
    once = normalize(text)
    assert normalize(once) == once
