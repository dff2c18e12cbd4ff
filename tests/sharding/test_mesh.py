import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from voxinstruct_jax.checkpoints.weights import load_weights
from voxinstruct_jax.cli.convert import export_run
from voxinstruct_jax.config import ConfigError, to_dict
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh, parameter_sharding, place_batch

REPOSITORY = Path(__file__).parents[2]
EIGHT_DEVICES = """
import dataclasses, json, sys
from pathlib import Path
import jax, numpy as np
from voxinstruct_jax.config import ConfigError, from_dict
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh, parameter_sharding, place_batch
from voxinstruct_jax.training.ar import ARExperiment, ar_task
from voxinstruct_jax.training.loop import train

found = {"devices": jax.device_count(), "errors": []}
for config in (MeshConfig(data=3), MeshConfig(fsdp=16), MeshConfig(data=2, fsdp=2, tensor=4)):
    try:
        build_mesh(config)
    except ConfigError as error:
        found["errors"].append(str(error))
mesh = build_mesh(MeshConfig(fsdp=2, tensor=2))
found["shape"] = dict(mesh.shape)
rows = place_batch(mesh, np.arange(32).reshape(8, 4))
found["row_shards"] = sorted({str(shard.data[:, 0].tolist()) for shard in rows.addressable_shards})
kernel = jax.device_put(np.zeros((8, 6)), parameter_sharding(mesh, ("embed", "heads")))
found["kernel_shards"] = sorted({str(shard.data.shape) for shard in kernel.addressable_shards})
try:
    place_batch(mesh, np.zeros((6, 4)))
except ConfigError as error:
    found["errors"].append(str(error))

experiment = from_dict(ARExperiment, json.loads(Path(sys.argv[1]).read_text()))
experiment = dataclasses.replace(
    experiment, mesh=MeshConfig(fsdp=2), train=dataclasses.replace(experiment.train, steps=3)
)
train(ar_task(experiment), experiment, Path(sys.argv[2]), report=lambda *_: None)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def eight_devices(tiny_ar_experiment, tmp_path_factory):
    """What a process with eight devices found, and its run: three steps of `tiny_ar_experiment` on a 4 x 2 x 1 mesh."""
    folder = tmp_path_factory.mktemp("eight")
    (folder / "experiment.json").write_text(json.dumps(to_dict(tiny_ar_experiment)))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(folder / "experiment.json"), str(folder / "run")],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder / "run"


@pytest.mark.slow
def test_a_run_on_eight_devices_has_the_losses_of_a_run_on_one(eight_devices, tiny_ar_run):
    _, folder = eight_devices
    many = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    one = [json.loads(line) for line in (tiny_ar_run.folder / "metrics.jsonl").read_text().splitlines()][:3]
    for name in ("loss", "loss_semantic", "loss_acoustic", "grad_norm", "learning_rate"):
        np.testing.assert_allclose([row[name] for row in many], [row[name] for row in one], rtol=1e-4)


def test_a_state_saved_by_eight_devices_is_exported_by_one(eight_devices, tiny_ar_run, tmp_path):
    assert export_run(eight_devices[1], tmp_path / "ar", dtype="float32") == 3
    settings, arrays = load_weights(tmp_path / "ar")
    assert settings["kind"] == "ar"
    shapes = jax.tree.map(lambda leaf: leaf.shape, tiny_ar_run.result.state.params)
    assert jax.tree.leaves(jax.tree.map(lambda leaf: leaf.shape, arrays)) == jax.tree.leaves(shapes)


def test_rows_are_split_over_data_and_fsdp_and_copied_over_tensor(eight_devices):
    found, _ = eight_devices
    assert found["devices"] == 8
    assert found["shape"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert found["row_shards"] == ["[0, 4]", "[16, 20]", "[24, 28]", "[8, 12]"]
    assert found["kernel_shards"] == ["(4, 3)"]


def test_what_does_not_fit_the_devices_says_the_numbers(eight_devices):
    assert eight_devices[0]["errors"] == [
        "mesh 3 x 1 x 1 needs 3 devices, found 8",
        "mesh 1 x 16 x 1 needs 16 devices, found 8",
        "mesh 2 x 2 x 4 needs 16 devices, found 8",
        "6 rows do not split over data x fsdp = 4 devices; give a multiple of 4",
    ]


def test_one_device_makes_a_mesh_of_one():
    mesh = build_mesh(MeshConfig())
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert parameter_sharding(mesh, None).spec == PartitionSpec()
    assert parameter_sharding(mesh, ("embed", None, "mlp")).spec == PartitionSpec("fsdp", None, "tensor")
    np.testing.assert_array_equal(place_batch(mesh, {"rows": np.eye(2)})["rows"], jnp.eye(2))


@pytest.mark.parametrize("change", [{"data": -1}, {"fsdp": 0}, {"tensor": 0}])
def test_a_mesh_of_no_devices_is_refused(change):
    with pytest.raises(ConfigError, match=r"must be at least 0, fsdp=. and tensor=. at least 1"):
        MeshConfig(**change)
