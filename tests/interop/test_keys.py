"""Every foreign key is accounted for, and the way back is exact."""

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.keys import (
    convolution,
    export_tensors,
    fill,
    flat_weights,
    heads_in,
    heads_out,
    import_module,
    joined,
    same,
    stacked,
    transposed,
)


class Small(nnx.Module):
    """One weight of each kind."""

    def __init__(self):
        self.plain = nnx.Param(np.zeros((3, 2), np.float32))
        self.linear = nnx.Param(np.zeros((3, 2), np.float32))
        self.out = nnx.Param(np.zeros((5, 2, 3), np.float32))
        self.blocks = nnx.List([nnx.Dict(into=nnx.Param(np.zeros((2, 3, 5), np.float32)))])
        self.filters = nnx.Param(np.zeros((4, 2, 3), np.float32))
        self.tables = nnx.Param(np.zeros((6, 2), np.float32))
        self.stack = nnx.Param(np.zeros((2, 3, 4), np.float32))


WEIGHTS = [
    same("plain.weight", "plain"),
    transposed("linear.weight", "linear"),
    heads_out("q.weight", "out", 2),
    heads_in("o.weight", "blocks/0/into", 2),
    convolution("conv.weight", "filters"),
    joined(["table.0", "table.1"], "tables"),
    stacked(["head.0", "head.1"], "stack"),
]
SHAPES = {
    "plain.weight": (3, 2),
    "linear.weight": (2, 3),
    "q.weight": (6, 5),
    "o.weight": (5, 6),
    "conv.weight": (3, 2, 4),
    "table.0": (3, 2),
    "table.1": (3, 2),
    "head.0": (4, 3),
    "head.1": (4, 3),
}


def draw_tensors(seed):
    random = np.random.default_rng(seed)
    return {key: random.standard_normal(shape).astype(np.float32) for key, shape in SHAPES.items()}


@given(st.integers(0, 10**6))
def test_there_and_back_is_exact(seed):
    tensors = draw_tensors(seed)
    module = import_module(Small, WEIGHTS, tensors, source="here")
    back = export_tensors(module, WEIGHTS)
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_heads_lie_as_pytorch_projections_lay_them():
    tensors = draw_tensors(0)
    module = import_module(Small, WEIGHTS, tensors, source="here")
    x, y = np.ones(5, np.float32), np.arange(6, dtype=np.float32)
    heads = np.einsum("d,dnh->nh", x, module.out[...])
    np.testing.assert_allclose(heads.ravel(), tensors["q.weight"] @ x, rtol=1e-5)
    joint = np.einsum("nh,nhd->d", y.reshape(2, 3), module.blocks[0]["into"][...])
    np.testing.assert_allclose(joint, tensors["o.weight"] @ y, rtol=1e-5)


def test_all_that_does_not_fit_is_listed_in_one_line():
    tensors = draw_tensors(0)
    del tensors["head.1"], tensors["plain.weight"]
    tensors |= {"more": np.ones(1), "q.weight": np.ones((6, 4)), "linear.weight": np.zeros(())}
    with pytest.raises(InputError) as caught:
        import_module(Small, WEIGHTS, tensors, source="x.pyt")
    assert str(caught.value) == (
        "x.pyt: weights do not fit; 2 missing: plain.weight, head.1; 1 left over: more; 2 of another shape: "
        "linear.weight scalar instead of 2 x 3, q.weight 6 x 4 instead of 6 x 5"
    )


def test_long_lists_are_shortened_to_a_count():
    extra = {f"extra.{number}": np.ones(1) for number in range(25)}
    with pytest.raises(InputError, match=r"25 left over: extra\.0, .*, extra\.9 and 15 more$"):
        import_module(Small, WEIGHTS, draw_tensors(0) | extra, source="x")


def test_known_unused_keys_may_stand_there_or_not():
    tensors = draw_tensors(0)
    import_module(Small, WEIGHTS, tensors, source="x", unused={"dead.weight"})
    import_module(Small, WEIGHTS, {**tensors, "dead.weight": np.ones(3)}, source="x", unused={"dead.weight"})
    with pytest.raises(InputError, match=r"1 left over: dead2\.weight"):
        import_module(Small, WEIGHTS, {**tensors, "dead2.weight": np.ones(3)}, source="x", unused={"dead.weight"})


def test_a_table_that_misses_a_weight_of_ours_is_refused():
    without = {key: array for key, array in draw_tensors(0).items() if not key.startswith("head")}
    with pytest.raises(InputError, match="1 missing: stack"):
        import_module(Small, WEIGHTS[:-1], without, source="x")
    with pytest.raises(InputError, match="nothing"):
        import_module(Small, [*WEIGHTS, same("a", "nothing")], draw_tensors(0), source="x")
    module = import_module(Small, WEIGHTS, draw_tensors(0), source="x")
    with pytest.raises(InputError, match="left over: plain"):
        export_tensors(module, WEIGHTS[1:])


def test_filling_by_our_own_paths():
    module = import_module(Small, WEIGHTS, draw_tensors(0), source="x")
    table = {path: np.asarray(array) for path, array in flat_weights(module).items()}
    again = flat_weights(fill(Small, table, source="x"))
    for path, array in table.items():
        np.testing.assert_array_equal(again[path], array)
    del table["blocks/0/into"]
    with pytest.raises(InputError, match="y: weights do not fit; 1 missing: blocks/0/into"):
        fill(Small, table, source="y")


def test_weights_take_the_type_of_the_module():
    tensors = {key: array.astype(np.float16) for key, array in draw_tensors(0).items()}
    module = import_module(Small, WEIGHTS, tensors, source="x")
    assert {array.dtype for array in flat_weights(module).values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(module.plain[...], tensors["plain.weight"].astype(np.float32))
