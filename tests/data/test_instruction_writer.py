import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_writer import MARK, check_rewriting, row_generator, write
from voxinstruct_jax.data.instructions import Instruction
from voxinstruct_jax.data.manifest import Row
from voxinstruct_jax.text.content import spoken_content

TRANSCRIPT = "Please do not ever do that again."


def row(transcript=TRANSCRIPT, language="en", **attributes):
    return Row(id="r", audio="r.wav", language=language, transcript=transcript, attributes=attributes)


def draft(text, language="en"):
    return Instruction(text=text, language=language, form="led", position="last", frame="", template="")


class Answers:
    """A language model that answers by a function of the prompt."""

    def __init__(self, answer):
        self.answer, self.prompts = answer, []

    def complete(self, prompts):
        self.prompts += prompts
        return [self.answer(prompt) for prompt in prompts]


def echoed(prompt):
    """The draft, which is the third line of the prompt."""
    return prompt.split("Instruction: ", 1)[1].split(f"\n\n{MARK} stands", 1)[0]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60).filter(lambda text: text.strip()), st.sampled_from(["en", "zh"]), st.integers(0, 99))
def test_any_transcript_stands_verbatim_or_it_is_said_why_not(transcript, language, seed):
    def written(language_model):
        return write(row(transcript, language, gender="male"), 2, np.random.default_rng(seed), language_model)

    try:
        texts = written(None)
    except InputError:
        assert set(transcript) & set("\"'“”‘’「」『』«»")
        with pytest.raises(InputError, match=r"(?s)row 'r': the content .* cannot be quoted"):
            written(Answers(echoed))
        return
    for found in (texts, written(Answers(echoed))):
        assert [spoken_content(text).text for text in found] == [transcript] * 2


def test_same_id_and_seed_write_the_same_in_any_process():
    script = (
        "from voxinstruct_jax.data.instruction_writer import row_generator, write\n"
        "from voxinstruct_jax.data.manifest import Row\n"
        "a = {'gender': 'male', 'speed': 'slow', 'pitch': 'low', 'energy': 'low', 'stress': [1]}\n"
        "r = Row(id='é1', audio='a', language='zh', transcript='今天下雨。', attributes=a)\n"
        "print(write(r, 4, row_generator(r.id, 7)))"
    )
    written = {
        subprocess.run([sys.executable, "-X", "utf8=1", "-c", script], capture_output=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
                    {"PYTHONHASHSEED": "2", "PYTHONPATH": ":".join(sys.path)})
    }  # fmt: skip
    assert len(written) == 1
    assert row_generator("a", 1).random() == row_generator("a", 1).random()
    assert len({row_generator(name, seed).random() for name in "ab" for seed in (1, 2)}) == 4
    assert int(row_generator("clip", 0).integers(2**32)) == 548361061


def test_model_sees_the_draft_and_never_has_to_copy_the_transcript():
    model, long = Answers(echoed), "lorem ipsum dolor " * 120
    (text,) = write(row(long, gender="male"), 1, row_generator("r", 0), model, tally=(tally := Counter()))
    assert spoken_content(text).text == long
    assert +tally == {"language model": 1}
    assert model.prompts[0].count(MARK) >= 3
    assert len(model.prompts[0]) < 1800


@pytest.mark.parametrize(
    "answer",
    [
        lambda prompt: "",
        lambda prompt: "A man says something.",
        lambda prompt: f"{MARK} and {MARK}",
        lambda prompt: f"Sure! Here is the rewritten instruction: {echoed(prompt)}",
        lambda prompt: echoed(prompt) + " She is angry.",
        lambda prompt: (
            echoed(prompt) + " 请用中文慢慢地说这一句话给所有的人听一遍，不要着急，也不要太大声，谢谢大家的帮助。"
        ),
        lambda prompt: echoed(prompt) + " word" * 300,
        lambda prompt: echoed(prompt) + f" So: {TRANSCRIPT}",
        lambda prompt: echoed(prompt) + ' Then say "a much longer thing than what was asked for, by far".',
        lambda prompt: f"```\n{echoed(prompt)}\n```",
    ],
    ids=["none", "no words", "twice", "preamble", "woman", "language", "length", "repeats", "other words", "fence"],
)
def test_bad_answers_give_way_to_the_grammar_and_are_counted(answer):
    given, tally = row(gender="male", speed="slow"), Counter()
    written = write(given, 6, row_generator("r", 1), Answers(answer), tally=tally)
    assert written == write(given, 6, row_generator("r", 1))
    assert tally["grammar"] == 6
    assert sum(count for name, count in tally.items() if name.startswith("language model: ")) == 6
    assert not tally["language model"]


@pytest.mark.parametrize(
    "answer",
    [
        MARK + ", slowly, from a man.",
        f"<think>Hm: {MARK}?</think>\nA man, slowly: “{MARK}”",
        f"A man, slowly: «{TRANSCRIPT}»",
    ],
)
def test_good_answers_are_kept(answer):
    tally = Counter()
    model = Answers(lambda prompt: answer)
    given = row(gender="male", speed="slow")
    seeds = [seed for seed in range(12) if spoken_content(write(given, 1, row_generator("r", seed))[0]).text]
    for seed in seeds:
        write(given, 1, row_generator("r", seed), model, prosody_words=False, tally=tally)
    assert tally["language model"] >= 8  # the rest was asked for in Mandarin


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'Let a man murmur this, hardly audible: "{TRANSCRIPT}" Mind "ever".', ""),
        (f'Let a man murmur this, hardly audible: "{TRANSCRIPT}"', "stress"),
        (f'Let a man say this: "{TRANSCRIPT}" Mind "again".', "stress"),
        ('Let a man say this: "Please do not do that again." Mind "ever".', "transcript"),
        (f'Let a man shout this: "{TRANSCRIPT}" Mind "ever".', "contradiction"),
        (f'Let a man say this sadly: "{TRANSCRIPT}" Mind "ever".', "contradiction"),
        (f'An old man: "{TRANSCRIPT}" Mind "ever".', "contradiction"),
        (f'Softly, a woman: "{TRANSCRIPT}" Mind "ever".', "contradiction"),
        (f"男士小声说：“{TRANSCRIPT}”，重读“ever”", "language"),
        (f'Here is the result. A man: "{TRANSCRIPT}" Mind "ever".', "form"),
        (f'Here is it: a man: "{TRANSCRIPT}" Mind "ever".', "form"),
        (f'"{TRANSCRIPT}"', "length"),
    ],
)
def test_check_finds_what_is_wrong(text, problem):
    made_from = draft(f'A man says softly: "{TRANSCRIPT}" Stress "ever".')
    given = {"gender": "male", "energy": "low", "stress": [3]}
    assert check_rewriting(text, made_from, TRANSCRIPT, given) == problem


def test_contradictions_are_found_in_mandarin():
    made_from = draft("一位男士小声说：“再来一次。”", "zh")
    given = {"gender": "male", "energy": "low"}
    assert check_rewriting("请让男士压低嗓门讲“再来一次。”", made_from, "再来一次。", given) == ""
    assert check_rewriting("请让女士压低嗓门讲“再来一次。”", made_from, "再来一次。", given) == "contradiction"
    assert check_rewriting("请让男士大声讲“再来一次。”", made_from, "再来一次。", given) == "contradiction"


def test_answers_that_are_missing_are_an_error():
    model = Answers(echoed)
    model.complete = lambda prompts: []
    with pytest.raises(InputError, match="gave 0 answers to 2 prompts"):
        write(row(gender="male"), 2, row_generator("r", 0), model)


def test_wrong_attributes_name_the_row():
    with pytest.raises(InputError, match="row 'r': attribute gender: 'm' is not one of female, male"):
        write(row(gender="m"), 1, row_generator("r", 0))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_the_grammar_writes_passes_its_own_check(language):
    tally = Counter()
    given = row(
        {"en": TRANSCRIPT, "zh": "请再也不要这样做了。"}[language], language, gender="female", speed="slow", stress=[2]
    )
    for seed in range(150):
        write(given, 2, row_generator("r", seed), Answers(echoed), tally=tally)
    assert +tally == {"language model": 300}
