"""Where decoding follows the release, and where it doesn't."""

import dataclasses

import numpy as np
import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.decoding.maskgit import masked_layout
from voxinstruct_jax.decoding.rules import FIXED, DecodingRules
from voxinstruct_jax.decoding.sampling import acoustic_mask, semantic_mask
from voxinstruct_jax.vocabulary import Vocabulary

FAITHFUL = DecodingRules.faithful()


def test_each_departure_has_a_switch():
    assert all(dataclasses.asdict(FAITHFUL).values())
    assert not any(dataclasses.asdict(FIXED).values())
    assert DecodingRules() == FIXED == DecodingRules.fixed()


@pytest.mark.parametrize(
    ("mask", "switch", "faithful", "fixed"),
    [
        (semantic_mask, "shifted_semantic_ids", {*range(501), 1528}, {*range(3, 503), 1528}),
        (acoustic_mask, "shifted_acoustic_ids", {*range(501, 1527), 1529}, {*range(503, 1527), 1529}),
    ],
)
def test_shifted_ranges_are_those_of_the_release_at_paper_size(mask, switch, faithful, fixed):
    def allowed(rules):
        return set(np.flatnonzero(mask(Vocabulary(), rules)).tolist())

    assert allowed(FAITHFUL) == allowed(DecodingRules(**{switch: True})) == faithful
    assert allowed(FIXED) == allowed(dataclasses.replace(FAITHFUL, **{switch: False})) == fixed


def test_ids_that_were_drawn_out_of_range_reach_the_nar_model_as_they_are():
    """Units -3 to -1 are padding and the languages, codes -2 and -1 the last two units."""
    vocabulary, nothing = Vocabulary(), np.zeros((8, 0), np.int32)
    units, codes = np.array([5, -3, -1, 497]), np.array([7, -2, 1023])
    layout = masked_layout(vocabulary, "zh", units, codes, nothing, FAITHFUL)
    assert layout.tokens[0].tolist() == [1527, 2, 8, 0, 2, 500, 1528, 510, 501, 1526, 1529]
    assert layout.tokens[3].tolist() == [1527, 2, 8, 0, 2, 500, 1528, 0, 0, 0, 0]
    with pytest.raises(InputError, match="semantic tokens run from -3"):
        masked_layout(vocabulary, "zh", units, codes, nothing)
    within = masked_layout(vocabulary, "zh", np.array([5]), np.array([7]), nothing)
    np.testing.assert_array_equal(
        within.tokens, masked_layout(vocabulary, "zh", np.array([5]), np.array([7]), nothing, FAITHFUL).tokens
    )
