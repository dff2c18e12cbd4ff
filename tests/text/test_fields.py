import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.emphasis import stressed_spans
from voxinstruct_jax.text.fields import plain_fields, with_colons


@pytest.mark.parametrize(
    ("instruction", "plain"),
    [
        (
            '{"text": "The bus is late.", "voice": {"gender": "female", "speed": "fast"}}',
            '{text: "The bus is late.", voice: {gender: female, speed: fast}}',
        ),
        ('{"音色": "男", "语速": "快", "内容": "快递到楼下了。"}', '{音色: 男, 语速: 快, 内容: "快递到楼下了。"}'),
        ("tts('It is late.', voice='old man')", "tts('It is late.', voice=old man)"),
        ('<say text="It is late." gender="male"/>', '<say text="It is late." gender=male/>'),
        ("台词：“走吧。” 语气：“轻快”", "台词：“走吧。” 语气：轻快"),
    ],
)
def test_what_describes_the_voice_is_quoted_no_longer(instruction, plain):
    assert plain_fields(instruction) == plain


def test_a_key_says_what_is_spoken_where_the_description_is_longer():
    request = {"instructions": "a deep old voice that speaks very slowly", "input": "Hi there."}
    assert spoken_content(plain_fields(json.dumps(request))).text == "Hi there."


@pytest.mark.parametrize("words", ["门开着，进来吧。", 'He said "no" to me.', "It is late,\nand cold."])
def test_escapes_of_json_are_read(words):
    plain = plain_fields(json.dumps({"text": words, "gender": "male"}))
    assert spoken_content(plain).text == words.replace('"', "'").replace("\n", " ")


def test_what_is_hardly_json_is_left_alone():
    assert plain_fields('{"text": ' + "[" * 1900) == '{"text": ' + "[" * 1900


@pytest.mark.parametrize(
    ("instruction", "stressed"),
    [
        ('{"stress": "never", "text": "I never said it", "voice": "a man"}', ["never"]),
        ('<say text="这是**热**牛奶。" note="星号里的字重读"/>', ["热"]),
        ("重读：“三点”：“我们三点出发。”", ["三点"]),
    ],
)
def test_words_to_be_stressed_are_found_among_fields(instruction, stressed):
    plain = plain_fields(instruction)
    assert [plain[start:end] for start, end in stressed_spans(plain)] == stressed


@pytest.mark.parametrize(
    "instruction",
    ['A man says: "no."', 'Stress "never": "I never said it."', "他说“好”，她说“不好”。", ""],
)
def test_prose_stays_as_it_is(instruction):
    assert plain_fields(instruction) == instruction


@given(st.text(alphabet="text voice:={}\"'“”，重读好a", max_size=60))
def test_only_quote_marks_go(text):
    assert [each for each in plain_fields(text) if each not in "\"'“”"] == [
        each for each in text if each not in "\"'“”"
    ]


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        (
            'energy = low, Pitch=high: "speed = 3 metres a second"',
            'energy: low, Pitch: high: "speed = 3 metres a second"',
        ),
        ("“十点开门”，语速=慢，音量 == 小", "“十点开门”，语速: 慢，音量: 小"),
        ('profit = 3: "Well done."', 'profit = 3: "Well done."'),
        ('Say "Hello" at a rate = as you like', 'Say "Hello" at a rate: as you like'),
    ],
)
def test_attributes_are_told_with_colons_and_the_words_stay(instruction, told):
    assert with_colons(instruction) == told
    assert spoken_content(told).text == spoken_content(instruction).text
