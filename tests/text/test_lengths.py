import pytest

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.text.lengths import LengthLine, fit_length_line, syllables


def test_syllables_of_both_languages_are_counted():
    assert syllables("we won") == 2
    assert syllables("今天天气") == 4
    assert syllables('say "hello"') == 3
    assert syllables("...") == 1


def test_a_line_is_found_again():
    counts = [1.0, 4.0, 9.0, 12.0]
    found = fit_length_line(counts, [0.4 + 0.17 * count for count in counts])
    assert (found.start_s, found.s_per_syllable) == (0.4, 0.17)
    assert found.seconds("we won") == pytest.approx(0.74)


def test_clips_that_tell_no_line_give_a_usable_one():
    assert fit_length_line([5.0, 5.0], [1.2, 1.4]) == LengthLine(start_s=0.3, s_per_syllable=0.2)
    falling = fit_length_line([1.0, 10.0], [3.0, 2.5])
    assert falling.s_per_syllable == 0.2
    through_zero = fit_length_line([1.0, 10.0], [0.1, 4.0])
    assert through_zero.start_s == 0
    assert through_zero.s_per_syllable > 0.3
    with pytest.raises(ConfigError, match="s_per_syllable above 0"):
        LengthLine(s_per_syllable=0.0)
