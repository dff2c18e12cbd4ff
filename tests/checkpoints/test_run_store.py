import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.checkpoints.run import RunStore, file_checksums
from voxinstruct_jax.config import InputError


def make_state(step):
    random = np.random.default_rng(step)
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": {"blocks": {0: {"kernel": jnp.asarray(random.standard_normal((3, 4)), jnp.float32)}}},
        "half": jnp.asarray(random.standard_normal(5), jnp.bfloat16),
    }


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    return jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, expected)


@pytest.fixture
def folder(tmp_path):
    """States of steps 3 and 6."""
    store = RunStore(tmp_path / "states")
    for step in (3, 6):
        store.save(step, make_state(step))
    store.close()
    return tmp_path / "states"


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_byte(folder):
    data = bytearray(largest_file(folder / "6").read_bytes())
    data[len(data) // 2] ^= 1
    largest_file(folder / "6").write_bytes(data)


def cut_a_file(folder):
    data = largest_file(folder / "6").read_bytes()
    largest_file(folder / "6").write_bytes(data[:-1])


def delete_a_file(folder):
    largest_file(folder / "6").unlink()


def delete_all_files(folder):
    shutil.rmtree(folder / "6")
    (folder / "6").mkdir()


def add_a_file(folder):
    (folder / "6" / "foreign").write_bytes(b"x")


def stop_before_the_checksums(folder):
    (folder / "checksums-6.json").unlink()


def cut_the_checksums(folder):
    path = folder / "checksums-6.json"
    path.write_text(path.read_text()[:-5])


DAMAGES = [
    flip_a_byte,
    cut_a_file,
    delete_a_file,
    delete_all_files,
    add_a_file,
    stop_before_the_checksums,
    cut_the_checksums,
]


def test_a_saved_state_comes_back_with_its_values_and_types(folder):
    store = RunStore(folder)
    assert store.whole_steps() == [6, 3]
    for step in (3, 6):
        assert same(store.restore(step, make_state(0)), make_state(step))
    store.close()


def test_a_state_comes_back_without_knowing_its_shapes(folder):
    store = RunStore(folder)
    found = store.restore_arrays(6)
    store.close()
    np.testing.assert_array_equal(
        found["params"]["blocks"]["0"]["kernel"], make_state(6)["params"]["blocks"][0]["kernel"]
    )
    np.testing.assert_array_equal(found["half"], make_state(6)["half"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_not_taken_for_whole_and_the_one_before_is_used(folder, damage):
    damage(folder)
    store = RunStore(folder)
    assert store.whole_steps() == [3]
    assert same(store.restore(3, make_state(0)), make_state(3))
    store.drop_after(3)
    assert not (folder / "6").exists()
    assert not (folder / "checksums-6.json").exists()
    store.save(6, make_state(60))
    store.close()
    store = RunStore(folder)
    assert store.whole_steps() == [6, 3]
    assert same(store.restore(6, make_state(0)), make_state(60))
    store.close()


def test_a_state_whose_folder_is_gone_is_not_listed(folder):
    shutil.rmtree(folder / "6")
    store = RunStore(folder)
    assert store.whole_steps() == [3]
    store.close()


def test_only_the_newest_states_and_their_checksums_are_kept(folder):
    store = RunStore(folder, keep=2)
    store.save(9, make_state(9))
    store.finish()
    assert store.whole_steps() == [9, 6]
    store.close()
    assert sorted(path.name for path in folder.iterdir()) == ["6", "9", "checksums-6.json", "checksums-9.json"]


# Orbax leaves coroutines of a refused restore behind; Python reports them at some later collection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("change", ["shape", "name", "missing"])
def test_a_state_of_another_model_is_refused_in_one_line(folder, change):
    like = make_state(0)
    if change == "shape":
        like["half"] = jnp.zeros(7, jnp.bfloat16)
    elif change == "name":
        like["quarter"] = like.pop("half")
    else:
        like["more"] = jnp.zeros(2)
    store = RunStore(folder)
    with pytest.raises(InputError, match=r"states/6: does not fit this model \(.*\); use another --out") as caught:
        store.restore(6, like)
    store.close()
    assert "\n" not in str(caught.value)


def test_checksums_are_those_of_the_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "abc.txt").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_checksums(tmp_path) == {"sub/abc.txt": digest}
    assert json.loads(json.dumps(file_checksums(tmp_path))) == {"sub/abc.txt": digest}
