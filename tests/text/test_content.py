import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.text.content import spoken_content

FORMS = [('"', '"'), ("“", "”"), ("'", "'"), ("‘", "’"), ("「", "」"), ("『", "』"), ("«", "»")]


@pytest.mark.parametrize(
    ("instruction", "content"),
    [
        ('An old man says slowly: "Not again." Stress "again".', "Not again."),
        ('"We won!" shouts a girl.', "We won!"),
        ("她说：“你好，世界！”", "你好，世界！"),
        ("他低声说「我们走吧」。", "我们走吧"),
        ("『外「里」面』", "外「里」面"),
        ("“他说‘不’，然后走了。”", "他说‘不’，然后走了。"),
        ("\"He said 'hi there' to me\" sadly", "He said 'hi there' to me"),
        ("He says 'I can't go' sadly", "I can't go"),
        ("He says ‘I don’t know’ quickly", "I don’t know"),
        ("'The dogs' food is here.' she says", "The dogs' food is here."),
        ("says 'yes' and then 'no way'", "no way"),
        ("他说'你好'然后走了", "你好"),
        ("«Bonjour» in a low voice", "Bonjour"),
        ('A 5" tall man says "Hello"', "Hello"),
        ('A girl says"Hello"loudly', "Hello"),
        ('Stress "one", then say "two".', "one"),
        ("I don't know what the boys' dog isn't", None),
        ("no quotes at all", None),
        ("“open only", None),
        ('""', None),
        ('"  "', None),
        ("", None),
    ],
)
def test_content_is_the_outermost_longest_quote(instruction, content):
    assert spoken_content(instruction).text == content


words = st.text(alphabet="abc de你好，. ", min_size=1, max_size=12).filter(lambda text: text.strip() == text and text)


@settings(deadline=None, max_examples=60)
@given(form=st.sampled_from(FORMS), content=words, style=words)
def test_every_form_of_quotes_gives_back_what_stands_in_it(form, content, style):
    instruction = f"{style}: {form[0]}{content}{form[1]} {style}"
    found = spoken_content(instruction)
    assert found.text == content
    assert instruction[found.start - 1] == form[0]
    assert instruction[found.end] == form[1]


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="ab \"'“”‘’「」«».我说s", max_size=20))
def test_content_always_lies_between_two_quote_marks(instruction):
    found = spoken_content(instruction)
    if found.text is None:
        assert (found.start, found.end) == (0, 0)
    else:
        assert found.text == instruction[found.start : found.end]
        assert found.text.strip()
        marks = "\"'“”‘’「」«»"
        assert instruction[found.start - 1] in marks
        assert instruction[found.end] in marks
