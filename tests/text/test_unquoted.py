import bz2
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.evaluation.test_sets import read_set
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.unquoted import unquoted_content
from voxinstruct_jax.utterance import with_quotes


def letters(text):
    return re.sub(r"[\W_]+", "", text.casefold())


REQUESTS = [
    json.loads(line)
    for line in bz2.decompress(Path(__file__).with_name("unquoted_requests.jsonl.bz2").read_bytes()).splitlines()
]
"""What is before the words, the words, and what is after, of requests by four writers that nothing was learnt from."""


def found_of(name):
    rows = [row for row in read_set(name) if not row["attributes"]["quoted"]]
    contents = [unquoted_content(row["instruction"]).text or "" for row in rows]
    return sum(letters(c) == letters(row["transcript"]) for c, row in zip(contents, rows, strict=True)), len(rows)


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("Slow male voice: good morning everyone", "good morning everyone"),
        ("See you at half past three.\nA cheerful woman, very fast.", "See you at half past three."),
        ("[deep, quiet] The shop is closed.", "The shop is closed."),
        ("voice: female\nspeed: fast\ntext: the train leaves at 7:45 sharp", "the train leaves at 7:45 sharp"),
        ("男声，小声一点：明天别忘了带伞。", "明天别忘了带伞。"),
        ("请用低沉的嗓音读\n我们到家了\n语速慢一些", "我们到家了"),
        ("语速：快\n内容：会议改到三点", "会议改到三点"),
        ("用一个阴森的男声说门自己开了，语速慢一点", "门自己开了"),
        ("让一个小伙子大声喊一句我们赢了", "我们赢了"),
        ("a low slow voice going the lights are off now", "the lights are off now"),
        ("say the show starts on monday in a cheerful female voice", "the show starts on monday"),
        ("input_text = 今天好冷\nvoice = female", "今天好冷"),
        ("There is some soup left, he said gruffly, his voice deep and slow.", "There is some soup left"),
        ("用姐姐的声音温柔地念一句 月亮睡了", "月亮睡了"),
        ("I need the phrase (mind the wet floor) said loudly and slowly.", "mind the wet floor"),
        ("[Dr. Nwosu will see you at 9:45 a.m.] <- receptionist, female", "Dr. Nwosu will see you at 9:45 a.m."),
        ("把【您的外卖已放在门口】读得响亮些，女声。", "您的外卖已放在门口"),
        ("My brother painted the fence — hit the word brother harder than the rest.", "My brother painted the fence"),
        ("We close on Tuesday, not Friday. Please put the emphasis on Tuesday.", "We close on Tuesday, not Friday."),
        ("他昨天就走了，重音放在昨天。", "他昨天就走了"),
        ("女声；轻一点\n【灯关了……\n门也锁了。】\n速度：慢", "灯关了……\n门也锁了。"),
    ],
)
def test_words_behind_a_seam_are_found(instruction, words):
    content = unquoted_content(instruction)
    assert content.text == words
    assert instruction[content.start : content.end] == words


@pytest.mark.parametrize(
    "instruction",
    [
        "The shop is closed on Sundays.",
        "今天天气不错。",
        "Hello, world!",
        "大家好，我是小明。",
        "Slow down, the road is icy.",
        "The slow train leaves at 7:45; the fast one at 8:10.",
        "",
    ],
)
def test_a_text_that_describes_no_voice_is_not_cut(instruction):
    assert unquoted_content(instruction).text is None


def test_hardly_any_plain_sentence_is_cut():
    names = ("instruct_en", "instruct_zh", "free_wording_en", "free_wording_zh", "hard", "code_switched")
    transcripts = {row["transcript"] for name in names for row in read_set(name)}
    cut = [transcript for transcript in transcripts if unquoted_content(transcript).text is not None]
    assert len(cut) < 0.04 * len(transcripts)


@given(st.text(max_size=80))
def test_any_text_is_read(text):
    content = unquoted_content(text)
    assert content.text is None or content.text == text[content.start : content.end] != ""


def test_most_unquoted_rows_of_the_shipped_sets_are_read():
    grammar = [found_of(name) for name in ("instruct_en", "instruct_zh")]
    free = [found_of(name) for name in ("free_wording_en", "free_wording_zh")]
    assert sum(right for right, _ in grammar) > 0.9 * sum(total for _, total in grammar)
    assert sum(right for right, _ in free) > 0.7 * sum(total for _, total in free)


def test_most_requests_of_other_writers_are_read():
    found = [unquoted_content("".join(parts)).text or "" for parts in REQUESTS]
    right = [letters(text) == letters(words) for text, (_, words, _) in zip(found, REQUESTS, strict=True)]
    assert len(right) == 420
    assert sum(right) > 0.86 * len(right)


def test_hardly_any_of_their_words_are_cut_where_they_stand_alone():
    cut = [words for _, words, _ in REQUESTS if unquoted_content(words).text is not None]
    assert len(cut) < 0.07 * len(REQUESTS)


def test_what_is_guessed_is_quoted_and_told():
    notes = []
    assert with_quotes("A deep voice: be quiet now.", None, notes) == 'A deep voice: "be quiet now."'
    assert notes == ["no quotes around what is to be spoken: taken to be 'be quiet now.'"]


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("Say `hello there` slowly, in a man's voice.", "hello there"),
        ("voice = woman, sad\n'''\nIt's late,\nand it's cold.\n'''\npace = slow", "It's late,\nand it's cold."),
        ("```\n门开着。\n```\n女声，慢一点", "门开着。"),
        ('A man says "run `ls` now".', "run `ls` now"),
    ],
)
def test_words_between_fences_are_what_is_spoken(instruction, words):
    notes = []
    assert spoken_content(with_quotes(instruction, None, notes)).text == words
    assert not notes


def test_a_word_quoted_to_be_stressed_is_not_what_is_spoken():
    instruction = 'A loud male voice with the stress on "my": that was my idea'
    assert with_quotes(instruction, None, []).endswith('"my": "that was my idea"')


@pytest.mark.parametrize(
    "instruction",
    [
        'Say "my word" slowly, in a deep voice',
        'A man says "stop". He wants the car to stop, and he is angry.',
        "用温柔的女声说“我”，像我妈妈那样",
        'Say "good" in a loud voice: make it sound good.',
    ],
)
def test_quotes_are_sure(instruction):
    notes = []
    assert with_quotes(instruction, None, notes) == instruction
    assert not notes


def test_a_transcript_wins_over_a_guess():
    assert with_quotes("A deep voice: be quiet", "quiet", []) == 'A deep voice: be "quiet"'


@pytest.mark.parametrize("words", ['the 6" pipe', 'He said "no" and left', "it's his"])
def test_marks_within_the_words_do_not_end_them(words):
    assert spoken_content(with_quotes("A slow male voice", words, [])).text == words
