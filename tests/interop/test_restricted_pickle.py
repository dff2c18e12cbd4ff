"""Files of PyTorch and joblib: what the originals wrote is read, what could do harm is refused and does nothing."""

import contextlib
import io
import mmap
import os
import pickle
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.joblib_files import read_joblib
from voxinstruct_jax.interop.pytorch_files import read_pytorch, write_pytorch
from voxinstruct_jax.interop.restricted_pickle import read_pickle
from voxinstruct_jax.interop.tensors import read_centroids, read_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
NUM_TENSORS = 10


@pytest.mark.parametrize("name", ["torch_zip.pyt", "torch_legacy.pyt"])
def test_files_of_torch_save_are_read_whole(name):
    """Views, ties, transposed and empty tensors, five types, a Parameter; a scheduler with a NumPy scalar beside."""
    whole = read_pytorch(GOLDEN / name)
    assert whole["steps"] == 1800000
    assert whole["scheduler"] == {"_last_lr": [0.1], "base_lrs": [1e-4]}
    assert whole["args"].name == "argparse.Namespace"
    assert whole["args"].state == {"name": "tiny", "layers": [1, 2]}
    tensors = read_tensors(GOLDEN / name)
    with np.load(GOLDEN / "torch_files.npz") as expected:
        assert len(tensors) == NUM_TENSORS
        for key, array in tensors.items():
            np.testing.assert_array_equal(array.astype(np.float32), expected[key], err_msg=key)
    kinds = {key: str(tensors[key].dtype) for key in ("half", "low", "count", "flags", "table")}
    assert kinds == {"half": "float16", "low": "bfloat16", "count": "int64", "flags": "bool", "table": "float32"}


@pytest.mark.parametrize("name", ["kmeans", "mini_batch_kmeans"])
def test_centroids_of_scikit_learn_are_read(name):
    centroids = read_centroids(GOLDEN / f"{name}.bin")
    with np.load(GOLDEN / "torch_files.npz") as expected:
        np.testing.assert_array_equal(centroids, expected[f"centroids/{name}"].astype(np.float32))
    assert centroids.dtype == np.float32
    assert read_joblib(GOLDEN / f"{name}.bin").state["n_clusters"] == 3


def test_centroids_may_be_a_plain_array_but_no_pickled_one(tmp_path):
    table = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "plain.npy", table)
    np.testing.assert_array_equal(read_centroids(tmp_path / "plain.npy"), table)
    np.save(tmp_path / "objects.npy", np.array([Bomb(os.system, "true")], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"objects\.npy"):
        read_centroids(tmp_path / "objects.npy")
    np.save(tmp_path / "flat.npy", table[0])
    with pytest.raises(InputError, match="no k-means centroids"):
        read_centroids(tmp_path / "flat.npy")


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.tuples(
            st.sampled_from(["float32", "float16", "int64", "bool", "bfloat16"]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=30)
def test_what_is_written_is_read(tmp_path_factory, described):
    path = tmp_path_factory.mktemp("pyt") / "weights.pyt"
    random = np.random.default_rng(0)
    tensors = {
        key: np.asarray(4 * random.standard_normal(shape)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        for key, (dtype, shape) in described.items()
    }
    write_pytorch(path, {"model": tensors, "steps": 2**40})
    assert read_pytorch(path)["steps"] == 2**40
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_a_tied_array_is_stored_once(tmp_path):
    table = np.ones((100, 10), np.float32)
    write_pytorch(tmp_path / "tied.pyt", {"a": table, "b": table})
    assert (tmp_path / "tied.pyt").stat().st_size < 2 * table.nbytes
    found = read_tensors(tmp_path / "tied.pyt")
    np.testing.assert_array_equal(found["b"], table)


class Bomb:
    """Pickles to a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Nested:
    def __reduce__(self):
        return getattr, (Bomb(__import__, "os"), "system")


def hostile_objects(marker):
    command = f"touch {marker}"
    return {
        "os.system": Bomb(os.system, command),
        "eval": Bomb(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Bomb(exec, f"open({str(marker)!r}, 'w')"),
        "subprocess": Bomb(subprocess.Popen, ["touch", str(marker)]),
        "getattr chain": Nested(),
        "import": Bomb(__import__, "antigravity"),
        "in a list": [1, {"model": [Bomb(os.system, command)]}],
        "as a key": {Bomb(os.system, command): 1},
        "pathlib": Bomb(Path.touch, marker),
        "shutil": Bomb(shutil.rmtree, str(marker.parent)),
        "pickle in a pickle": Bomb(pickle.loads, pickle.dumps(Bomb(os.system, command))),
        "open": Bomb(io.open, str(marker), "w"),
        "numpy load": Bomb(np.load, str(marker)),
        "numpy object array": np.array([Bomb(os.system, command)], object),
        "numpy test runner": Bomb(np.testing.assert_equal, 1, 2),
    }


def raw_pickles(marker):
    """Opcodes that no pickler writes."""
    system = f"cos\nsystem\n(S'touch {marker}'\ntR."
    return {
        "old style call": system.encode(),
        "INST": f"(S'touch {marker}'\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'touch {marker}'\no.".encode(),
        "NEWOBJ": f"\x80\x02cos\nsystem\n(S'touch {marker}'\nt\x81.".encode("latin1"),
        "dots in a name": "\x80\x04\x8c\x08builtins\x8c\x0fgetattr.__self__\x93.".encode("latin1"),
        "BUILD on a class": b"\x80\x02ccollections\nOrderedDict\n}(X\x08\x00\x00\x00__call__K\x01ub.",
        "BUILD on a list": b"\x80\x02]}X\x01\x00\x00\x00aK\x01sb.",
        "BUILD with slots": b"\x80\x02]N}X\x06\x00\x00\x00appendcos\nsystem\ns\x86b.",
        "call of a value": b"\x80\x02X\x01\x00\x00\x00a)R.",
        "call of a stored object": b"\x80\x02cargparse\nNamespace\n)R)R.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "text persistent": b"Pfile\n.",
        "codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        "keys of a list": b"\x80\x02]K\x01K\x02s.",
        "empty stack": b"\x80\x02R.",
        "two values": b"\x80\x02K\x01K\x02.",
        "no end": b"\x80\x02K\x01",
        "nothing": b"",
        "noise": bytes(range(256)),
        "long text that is short": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "bytes that are short": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        "control characters": b"\x80\x04\x8c\x02\x1b[\x8c\x03\n\r\x07\x93.",
    }


def legacy_head():
    """Magic number, version and system of the older form of PyTorch's files."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))


def as_file(path, data, form):
    if form == "joblib":
        path.write_bytes(data)
    elif form == "legacy":
        path.write_bytes(legacy_head() + data)
    elif form == "legacy system":
        head = legacy_head()
        path.write_bytes(head[: head.rindex(b"\x80\x02")] + data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", data)
            archive.writestr("x/byteorder", "little")
    return read_joblib if form == "joblib" else read_pytorch


def assert_refused(path, data, form, marker):
    read = as_file(path, data, form)
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable()
    assert path.name in message
    assert len(message) < 400
    assert not marker.exists()


@pytest.mark.parametrize("form", ["zip", "joblib", "legacy", "legacy system"])
@pytest.mark.parametrize("name", list(hostile_objects(Path("marker"))))
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_hostile_objects_are_refused_and_run_nothing(tmp_path, form, name, protocol):
    marker = tmp_path / "marker"
    data = pickle.dumps(hostile_objects(marker)[name], protocol)
    assert_refused(tmp_path / "weights.pyt", data, form, marker)


@pytest.mark.parametrize("form", ["zip", "joblib", "legacy"])
@pytest.mark.parametrize("name", list(raw_pickles("marker")))
def test_hostile_opcodes_are_refused_and_run_nothing(tmp_path, form, name):
    marker = tmp_path / "marker"
    assert_refused(tmp_path / "weights.pyt", raw_pickles(marker)[name], form, marker)


def numpy_tricks(marker):
    """NumPy's own ways to rebuild arrays, which hold pickles of objects or shapes without data."""
    bomb = pickle.dumps(Bomb(os.system, f"touch {marker}"))
    inner = b"B" + struct.pack("<I", len(bomb)) + bomb

    def dtype(name):
        return f"cnumpy\ndtype\n(X{chr(len(name))}\0\0\0{name}I00\nI01\ntR".encode("latin1")

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
    return {
        "object scalar": b"\x80\x03cnumpy.core.multiarray\nscalar\n(" + dtype("O8") + inner + b"tR.",
        "object array": b"\x80\x03" + array + b"(K\x01(K\x01t" + dtype("O8") + b"I00\n](" + inner + b"etb.",
        "structured type": b"\x80\x03" + dtype("V8") + b"(K\x03C\x01|NX\x01\0\0\0a}I8\nI1\nK\x00tb.",
        "huge array": b"\x80\x03" + array + b"(K\x01(L999999999999L\nt" + dtype("f8") + b"I00\nC\x08........tb.",
        "huge item": b"\x80\x03cnumpy.core.multiarray\nscalar\n(" + dtype("S999999999") + b"C\x01atR.",
        "memory map": f"\x80\x03cnumpy\nmemmap\n(X\x01\0\0\0{marker.name[0]}tR.".encode("latin1"),
        "load from a path": b"\x80\x03cnumpy.lib.npyio\nload\n(X\x01\0\0\0xtR.",
        "fromfile": b"\x80\x03cnumpy.core.multiarray\nfromfile\n(X\x01\0\0\0xtR.",
        "buffer of objects": b"\x80\x03cnumpy.core.numeric\n_frombuffer\n(" + inner + dtype("O8") + b"(K\x01tC\x01CtR.",
        "call of a type": b"\x80\x03" + dtype("f8") + b"(" + inner + b"tR.",
    }


@pytest.mark.parametrize("form", ["zip", "joblib", "legacy"])
@pytest.mark.parametrize("name", list(numpy_tricks(Path("marker"))))
def test_tricks_with_numpy_are_refused_and_run_nothing(tmp_path, form, name):
    marker = tmp_path / "marker"
    tracemalloc.start()
    assert_refused(tmp_path / "weights.pyt", numpy_tricks(marker)[name], form, marker)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def plain_entries():
    pickled = tensor_pickle(0, (2, 3), (3, 1))
    return [("data.pkl", pickled), ("byteorder", b"little"), ("data/0", np.arange(6, dtype=np.float32).tobytes())]


@pytest.mark.parametrize("root", ["../../evil/", "/evil/", "C:\\evil/", "a/../../evil/", "\x1b[31m/"])
def test_names_that_lead_elsewhere_are_names_only(tmp_path, root):
    """Nothing is unpacked, so such a file is read like any other and writes nothing."""
    folder = tmp_path / "inner" / "place"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "x.pyt", "w") as archive:
        for name, content in plain_entries():
            archive.writestr(root + name, content)
    before = sorted(tmp_path.rglob("*"))
    np.testing.assert_array_equal(read_tensors(folder / "x.pyt")["a"], np.arange(6).reshape(2, 3))
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/evil").exists()


def test_a_storage_cannot_be_named_out_of_the_archive(tmp_path):
    """`data/../data.pkl` is no entry, whatever lies there."""
    pickled = tensor_pickle(0, (2, 3), (3, 1)).replace(b"X\x01\x00\x00\x000", b"X\x0b\x00\x00\x00../data.pkl")
    with zipfile.ZipFile(tmp_path / "x.pyt", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    with pytest.raises(InputError, match=r"data/\.\./data\.pkl is missing"):
        read_tensors(tmp_path / "x.pyt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_within_an_archive_is_no_pickle(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Bomb(os.system, f"touch {tmp_path / 'marker'}")))
    assert_refused(tmp_path / "nested.pyt", inner.getvalue(), "zip", tmp_path / "marker")
    with zipfile.ZipFile(tmp_path / "twice.pyt", "w") as archive:  # the first record is plain, the second hostile
        for content in (tensor_pickle(0, (2, 3), (3, 1)), pickle.dumps(Bomb(os.system, "touch marker"))):
            archive.writestr("x/data.pkl", content)
    with pytest.raises(InputError, match="nothing of it was run"):
        read_tensors(tmp_path / "twice.pyt")


@pytest.mark.parametrize("declared", [2**31, 2**32 - 2])
def test_sizes_that_an_archive_only_declares_take_no_memory(tmp_path, declared):
    path = tmp_path / "huge.pyt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in plain_entries():
            archive.writestr(f"x/{name}", content)
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")  # the last entry of the directory: data/0
    data[start + 20 : start + 28] = struct.pack("<II", declared, declared)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"huge\.pyt: (truncated|damaged|not a whole)"):
        read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80000000]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        b'{"a":{"dtype":"O","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"x":1},"a":3}',
        b'{"a":' + b"[" * 100_000,
        b"{",
    ],
)
@pytest.mark.parametrize("length", [None, 2**63, 2**40])
def test_damaged_safetensors_are_refused(tmp_path, header, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(8))
    with pytest.raises(InputError, match=r"x\.safetensors: damaged safetensors") as refusal:
        read_tensors(path)
    assert "\n" not in str(refusal.value)


def test_the_refusal_names_what_was_asked_for(tmp_path):
    as_file(tmp_path / "x.pyt", pickle.dumps(Bomb(os.system, "true")), "zip")
    with pytest.raises(InputError, match=r"x\.pyt: asks for posix\.system, .* nothing of it was run"):
        read_tensors(tmp_path / "x.pyt")


def test_small_files_cannot_take_much_memory():
    """A huge memo place, copies of copies, a shape without data."""
    megabyte = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x00"
    calls = b"c_codecs\nencode\nq\x01" + b"h\x01h\x00\x85R" * 3000
    doubling = b"K\x01q\x00" + b"0h\x00h\x00\x86q\x00" * 60
    pickles = {
        "memo": (b"\x80\x02K\x01r\xff\xff\xff\xff.", None),
        "copies": (b"\x80\x02" + megabyte + calls + b".", "more memory"),
        "shared": (b"\x80\x02" + doubling + b".", None),
        "reconstruct": (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x05\xff\xff\xff\xff\x7f\x85"
            b"X\x01\x00\x00\x00b\x87R.",
            None,
        ),
    }
    for name, (data, refusal) in pickles.items():
        stream = mmap.mmap(-1, len(data))
        stream[:] = data
        tracemalloc.start()
        if refusal is None:
            read_pickle(stream, name)
        else:
            with pytest.raises(InputError, match=refusal):
                read_pickle(stream, name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (2**29 if refusal else 2**22), name


def whole_file(folder):
    path = folder / "weights.pyt"
    write_pytorch(path, {"model": {"a": np.arange(600, dtype=np.float32), "b": np.ones((2, 3), np.float32)}})
    return path


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["zip", "legacy", "joblib"])
def test_truncated_files_are_refused(tmp_path, name, keep):
    original = {
        "zip": GOLDEN / "torch_zip.pyt",
        "legacy": GOLDEN / "torch_legacy.pyt",
        "joblib": GOLDEN / "kmeans.bin",
    }[name]
    path, data = tmp_path / "cut.pyt", original.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=r"cut\.pyt: "):
        (read_joblib if name == "joblib" else read_tensors)(path)


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path):
    path = whole_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(np.arange(600, dtype=np.float32).tobytes()) + 77] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="checksum"):
        read_tensors(path)


def rewrite(path, change):
    """Writes the archive again, each entry through `change`."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: data[:-4] if name.endswith("data/0") else data, "storage has 2396 bytes, 2400"),
        (lambda name, data: None if name.endswith("data/1") else data, "data/1 is missing"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "no file of torch.save"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "big-endian"),
    ],
)
def test_files_with_wrong_parts_are_refused(tmp_path, change, message):
    path = whole_file(tmp_path)
    rewrite(path, change)
    with pytest.raises(InputError, match=message):
        read_tensors(path)


def test_compressed_entries_are_refused(tmp_path):
    """What is never compressed can't expand: a file of a kilobyte that holds a gigabyte is not unpacked."""
    path = tmp_path / "bomb.pyt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    assert path.stat().st_size < 10**5
    with pytest.raises(InputError, match="compressed"):
        read_tensors(path)


def tensor_pickle(offset, shape, strides):
    def number(value):
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
    view = number(offset) + numbers(shape) + numbers(strides) + b"\x89Nt"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n" + storage + view + b"Rs."


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "fits"),
    [
        (0, (2, 3), (3, 1), True),
        (1, (2, 2), (3, 1), True),
        (5, (1,), (1,), True),
        (0, (3, 2), (1, 3), True),
        (0, (), (), True),
        (6, (0,), (1,), True),
        (1, (2, 3), (3, 1), False),
        (6, (1,), (1,), False),
        (0, (7,), (1,), False),
        (0, (2,), (6,), False),
        (-1, (2,), (1,), False),
        (0, (-2,), (1,), False),
        (3, (2,), (-1,), False),
        (0, (10**9, 10**9), (0, 0), False),
        (0, (2**31, 2**33), (1, 1), False),
        (0, (2, 3), (1,), False),
    ],
)
def test_tensors_never_leave_their_storage(tmp_path, offset, shape, strides, fits):
    path, values = tmp_path / "view.pyt", np.arange(6, dtype=np.float32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", tensor_pickle(offset, shape, strides))
        archive.writestr("x/data/0", values.tobytes())
    if not fits:
        with pytest.raises(InputError, match="tensor"):
            read_tensors(path)
        return
    places = offset + sum(np.indices(shape)[axis] * stride for axis, stride in enumerate(strides))
    np.testing.assert_array_equal(read_tensors(path)["a"], values[places] if shape != (0,) else np.zeros(0))


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=40)
def test_any_flipped_byte_is_read_or_refused_as_a_users_error(tmp_path_factory, place, value):
    for name, read in (
        ("torch_zip.pyt", read_pytorch),
        ("torch_legacy.pyt", read_pytorch),
        ("kmeans.bin", read_joblib),
    ):
        data = bytearray((GOLDEN / name).read_bytes())
        data[place % len(data)] = value
        path = tmp_path_factory.getbasetemp() / "flipped"
        path.write_bytes(data)
        with contextlib.suppress(InputError):  # of a value without a checksum nothing can be noticed
            read(path)


def test_other_files_are_named(tmp_path):
    (tmp_path / "text.pyt").write_text("hello, this is no weights file at all")
    with pytest.raises(InputError, match=r"neither safetensors nor a file of torch\.save"):
        read_tensors(tmp_path / "text.pyt")
    with pytest.raises(InputError, match=r"nowhere\.pyt: no file to read"):
        read_tensors(tmp_path / "nowhere.pyt")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    with pytest.raises(InputError, match=r"no file of torch\.save"):
        read_tensors(tmp_path / "arrays.npz")


@pytest.mark.parametrize(
    "order", [b"K\x01.", b"]}a.", b"X\x01\x00\x00\x000.", b"](X\x01\x00\x00\x000X\x01\x00\x00\x009e."]
)
def test_an_older_file_with_a_strange_order_of_storages_is_refused(tmp_path, order):
    data = (GOLDEN / "torch_legacy.pyt").read_bytes()
    stream = mmap.mmap(-1, len(data))
    stream[:] = data
    for _ in range(3):
        read_pickle(stream, "here")
    parts = [data[: stream.tell()], b"\x80\x02}.", b"\x80\x02", order, bytes(8)]
    (tmp_path / "x.pyt").write_bytes(b"".join(parts))
    with pytest.raises(InputError, match=r"x\.pyt: "):
        read_pytorch(tmp_path / "x.pyt")


@pytest.mark.parametrize("value", [{}, {"a": {}}, {"model": {"a": 1}}, {"a": np.ones(2), "b": 3}])
def test_a_file_without_a_table_of_tensors_is_refused(tmp_path, value):
    write_pytorch(tmp_path / "x.pyt", value)
    with pytest.raises(InputError, match=r"no table of tensors|are no tensors"):
        read_tensors(tmp_path / "x.pyt")
