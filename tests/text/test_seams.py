import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.text.seams import SEAMS, cut


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A deep voice: go home. Now!", ["A deep voice", "go home.", "Now!"]),
        ("text: the train leaves at 7:45", ["the train leaves at 7:45"]),
        ("女声，慢\n\n走吧", ["女声，", "慢", "走吧"]),
        ("[sad] It is late - tired woman", ["sad", "It is late", "tired woman"]),
        ("Say good night in a low voice", ["Say", "good night", "in a low voice"]),
        ("请说 hello my dear friend 再见啦，谢谢", ["请说", "hello my dear friend", "再见啦，", "谢谢"]),
        ("把开饭啦喊得整条街都听见", ["把", "开饭啦", "喊得整条街都听见"]),
        ("【轻一点\n慢一点】晚安", ["轻一点\n慢一点", "晚安"]),
        ("Say Mr. Vance left at 9 a.m. loudly", ["Say", "Mr. Vance left", "at 9 a.m.", "loudly"]),
        ("(slow, sad. Male!) We leave", ["slow, sad. Male!", "We leave"]),
        ("The line is who moved it", ["The line is", "who moved it"]),
        ("录一句电梯坏了就行", ["录一句", "电梯坏了", "就行"]),
        ("", []),
    ],
)
def test_a_text_is_cut_at_its_seams(text, pieces):
    assert [text[start:end] for start, end in cut(text).spans] == pieces


@given(st.text(max_size=80))
def test_pieces_follow_each_other_and_hold_all_words(text):
    pieces = cut(text)
    ends = [0, *(end for _, end in pieces.spans)]
    assert all(before <= start < end for before, (start, end) in zip(ends, pieces.spans, strict=False))
    assert len(pieces.kinds) == len(pieces.spans) + 1
    assert all(SEAMS[kind] for kind in pieces.kinds)
