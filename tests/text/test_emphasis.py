import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.evaluation.test_sets import read_set
from voxinstruct_jax.text import tokenizer as tokenizer_module
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.emphasis import asks_for_stress, stressed_spans
from voxinstruct_jax.text.normalizer import normalize
from voxinstruct_jax.text.tokenizer import INSIDE_QUOTES, QUOTE_CHANNEL, PronunciationTokenizer, arrange_text
from voxinstruct_jax.text.words import split_words
from voxinstruct_jax.utterance import with_quotes

OWN = [json.loads(line) for line in (Path(__file__).parent / "stress_requests.jsonl").read_text("utf-8").splitlines()]
CONCEPT = 3


def stressed(instruction):
    text = normalize(instruction)
    return [text[start:end] for start, end in stressed_spans(text)]


def places(instruction):
    """Indices of the stressed words."""
    text = normalize(instruction)
    content, spans = spoken_content(text), stressed_spans(text)
    words = [(content.start + word.start, content.start + word.end) for word in split_words(content.text)]
    return [at for at, (first, last) in enumerate(words) if any(a <= first and last <= b for a, b in spans)]


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ('Say "I never said he stole it" with stress on the word "never".', ["never"]),
        ("请重读“三点”：“我们三点出发。”", ["三点"]),
        ('Stress both "I" and "stole it": "I never said he stole it"', ["I", "stole it"]),
        ("强调“我”和“你”：“我说的是你。”", ["我", "你"]),
        ('Stress never when you say "I never said it"', ["never"]),
        ('"I never said it", with emphasis on I and never', ["I never"]),
        ('Make never stand out: "I never said it"', ["never"]),
        ("重读三点：“我们三点出发。”", ["三点"]),
        ("把三点读重一点，“我们三点出发。”", ["三点"]),
        ('Put the weight on NEVER. "I never said it"', ["never"]),
        ('Follow the stress marks: "I *never* said it"', ["never"]),
        ("下划线里的词要重读：“这_真的_不贵。”", ["真的"]),
        (
            'All the weight of the line must fall on the word cook, and the rest may pass. "But the cook did it."',
            ["cook"],
        ),
        ("整句话的分量要压在“妹妹”上：“打碎它的是妹妹。”", ["妹妹"]),
        ("星号里的词要重读：“这是*小周*说的，不是**小王**。”", ["小周", "小王"]),
        ('Stress the starred word: "2*3*4 is a **lot**"', ["lot"]),
        ('Stress what is in capitals: "I NEVER said it"', ["NEVER"]),
        ('"It’s don\'t, not do." Accent "don’t".', ["don't"]),
        ("Stress ‘coat looks’ and ‘it’: ‘Your coat looks as though it needed brushing.’", ["coat looks", "it"]),
    ],
)
def test_named_words_are_found(instruction, words):
    assert asks_for_stress(normalize(instruction))
    assert stressed(instruction) == words


@pytest.mark.parametrize(
    ("instruction", "indices"),
    [
        ('Emphasise the second "again": "Again and again."', [2]),
        ('Emphasise "again": "Again and again."', [0, 2]),
        ('Stress "again" the first time it comes. "Again and again."', [0]),
        ("重读第2个“再”：“再说再见。”", [2]),
        ("重读最后一次出现的“再”：“再说再见。”", [2]),
        ('Say "One two three four", stressing the 3rd word', [2]),
        ('Punch the first and the last word: "One two three four"', [0, 3]),
        ('Stress the last two words of "One two three four"', [2, 3]),
        ('Stress the penultimate word of "One two three four"', [2]),
        ("重读第三个字：“我们出发。”", [2]),
        ("重音在倒数第二个字：“我们出发。”", [2]),
        ("强调最后一个词：“I see you”", [2]),
        ("强调最后一个词：“我们出发。”", []),
        ('Stress the ninth word: "One two three four"', []),
    ],
)
def test_words_are_found_by_place(instruction, indices):
    assert places(instruction) == indices


@pytest.mark.parametrize(
    "instruction",
    [
        'A calm voice: "I never said it."',
        'He is under stress: "I never said it."',
        'A stressed out man says "I am so stressed."',
        'In an emphatic tone, "I said never."',
        'Read "I never said it" without stress on "never".',
        'Don\'t emphasise "never": "I never said it."',
        'With a British accent on the phone: "The phone is dead."',
        "不要强调“三点”，“我们三点出发。”",
        "不用重读“三点”：“我们三点出发。”",
        "“请重读三点。”",
        'Stress "maybe": "I never said it."',
        'Stress "I never said it".',
        "Stress never.",
        "",
    ],
)
def test_nothing_is_stressed_unasked(instruction):
    assert stressed(instruction) == []


def test_what_is_denied_does_not_hide_what_is_asked():
    assert stressed('Stress "said", not "never": "I never said it."') == ["said"]
    assert stressed("重点在“三点”，别强调错了：“我们三点出发。”") == ["三点"]


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ('Read "We leave on Monday" so that one hears it is Monday and not Friday.', ["Monday"]),
        ('"It is red, not blue." A man, slowly.', []),
        ('It is a friend, not an enemy, who says: "The door is open."', []),
        ("“我坐船走。”要让人听明白：是船，不是车。", ["船"]),
        ("说话的是妈妈，不是奶奶：“门开着。”", []),
    ],
)
def test_what_is_set_against_something_else_is_stressed(instruction, words):
    assert stressed(instruction) == words


def test_the_shipped_requests_are_understood():
    for row in read_set("stress"):
        asked = with_quotes(row["instruction"], None, [])
        apart = with_quotes(row["instruction"], row["transcript"], [])
        assert places(asked) == places(apart) == row["attributes"]["stress"], row["id"]


@pytest.mark.parametrize("name", ["instruct_en", "instruct_zh", "free_wording_en", "free_wording_zh", "hard"])
def test_no_other_shipped_request_is_marked(name):
    rows = [row for row in read_set(name) if not row.get("attributes", {}).get("stress")]
    assert [row["id"] for row in rows if stressed(with_quotes(row["instruction"], None, []))] == []


def test_freely_worded_requests_are_understood():
    right = [places(row["instruction"]) == row["stress"] for row in OWN]
    assert all(ok for ok, row in zip(right, OWN, strict=True) if not row["stress"])
    assert sum(right) >= len(OWN) - 1


@given(st.text(alphabet="stress 重读“”\"'‘’the la nver第一个字,.:*", max_size=60))
def test_spans_lie_within_the_content_and_apart(text):
    text = normalize(text)
    content, spans = spoken_content(text), stressed_spans(text)
    edges = [content.start, *(edge for span in spans for edge in span), content.end]
    assert edges == sorted(edges)
    assert all(start < end for start, end in spans)


def test_long_texts_take_no_time_to_refuse():
    stressed_spans("“好” " + "一词" * 400 + "念得" * 400 + "重读")
    stressed_spans('"no" ' + "the word " * 300 + "stress " * 50)


# --- rows ------------------------------------------------------------------------------------------------------------


def concepts(text):
    """Of the content's characters, of all where nothing is quoted."""
    rows = PronunciationTokenizer().encode(text)[:-1]
    inside = rows[:, QUOTE_CHANNEL] == INSIDE_QUOTES
    return rows[inside if inside.any() else slice(None), CONCEPT].tolist()


def test_stressed_words_bear_the_concept_of_stress():
    (stress,), (slow,) = (set(concepts(word)) for word in ("stress", "slow"))
    assert concepts('Stress "slow": "Go slow, Kim"') == [0] * 3 + [stress] * 4 + [0] * 5
    assert concepts('Calmly: "Go slow, Kim"') == [0] * 3 + [slow] * 4 + [0] * 5
    assert [concept == stress for concept in concepts("请重读“三点”：“我们三点走。”")] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_spoken_words_about_stress_are_not_marked():
    assert concepts('Calmly: "Kim, stress"') == [0] * 11


def test_only_the_concepts_tell_a_mark():
    tokenizer = PronunciationTokenizer()
    marked, plain = (tokenizer.encode(f'{verb} "said": "I never said it"') for verb in ("Stress", "Repeat"))
    inside = marked[:, QUOTE_CHANNEL] == INSIDE_QUOTES
    np.testing.assert_array_equal(np.delete(marked[inside], CONCEPT, 1), np.delete(plain[inside], CONCEPT, 1))
    assert (marked[inside] != plain[inside]).any()
    np.testing.assert_array_equal(arrange_text(marked, "content")[1:, CONCEPT], 0)


def test_the_fingerprint_follows_the_rules(monkeypatch):
    before = PronunciationTokenizer().fingerprint
    monkeypatch.setattr(tokenizer_module, "STRESS_PATTERNS", ("stress",))
    patterns = PronunciationTokenizer().fingerprint
    monkeypatch.setattr(tokenizer_module, "RULE_VERSION", 0)
    assert len({before, patterns, PronunciationTokenizer().fingerprint}) == 3


# --- the transcript given apart --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "instruction",
    ['Stress "never".', "Stress never.", 'Stress "never": I never said it', "Stress the second word, calmly."],
)
def test_a_transcript_given_apart_is_marked(instruction):
    asked = with_quotes(instruction, "I never said it", [])
    assert spoken_content(asked).text == "I never said it"
    assert stressed(asked) == ["never"]


def test_quotes_that_are_spoken_win_over_a_transcript():
    assert with_quotes('Say "never" with stress', "I never said it", []) == 'Say "never" with stress'
