import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.config import to_dict

REPOSITORY = Path(__file__).parents[2]

PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
import jax, numpy as np
from voxinstruct_jax.config import from_dict
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.sharding.mesh import MeshConfig, arrange, place_batch
from voxinstruct_jax.training.ar import ARExperiment, ar_task
from voxinstruct_jax.training.nar import NARExperiment, nar_task
from voxinstruct_jax.training.optimizer import make_optimizer
from voxinstruct_jax.training.step import StepConfig, build_trainer

ar = from_dict(ARExperiment, json.loads(Path(sys.argv[1]).read_text()))
# without dropout: its bits depend on how rows are worked off, and the kernels have none
quiet = {n: dataclasses.replace(getattr(ar.model, n), dropout=0.0) for n in ("backbone", "text_encoder")}
ar = dataclasses.replace(ar, model=dataclasses.replace(ar.model, **quiet))
same = {f.name: getattr(ar, f.name) for f in dataclasses.fields(ar) if f.name not in ("model", "objective")}
nar_model = NARConfig(**{n: getattr(ar.model, n) for n in ("vocabulary", "backbone", "text_encoder")})
nar = NARExperiment(model=nar_model, **same)
experiments = {"ar": (ar, ar_task), "nar": (nar, nar_task)}

def run(kind, mesh=(1, 1, 1), execution=Execution(), step=StepConfig(), begin=None):
    experiment, make_task = experiments[kind]
    task = make_task(dataclasses.replace(experiment, execution=execution, step=step))
    sizes = MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
    mesh = arrange(sizes, jax.devices()[: int(np.prod(mesh))])
    optimizer, program = make_optimizer(task.optimizer), task.program
    trainer = build_trainer(program.build_model, program.objective, optimizer, mesh, seed=0, config=step)
    # fresh weights are made once for all ways: to compile that for each mesh would take as long as the steps
    begin = begin or jax.device_get(trainer.init())
    ema = begin.params if step.ema_decay else None
    placement = jax.tree.map(lambda leaf: leaf.sharding, trainer.shapes)
    state, rows = jax.device_put(dataclasses.replace(begin, ema=ema), placement), []
    for number in range(3):
        state, metrics = trainer.step(state, place_batch(mesh, task.batches[number]))
        rows.append([float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")])
    whole = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.params)]
    split = [len({str(s.index) for s in leaf.addressable_shards}) for leaf in jax.tree.leaves(state.params)]
    moments = [len({str(s.index) for s in leaf.addressable_shards}) for leaf in jax.tree.leaves(state.optimizer)]
    ema = None if state.ema is None else [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.ema)]
    return begin, rows, np.concatenate(whole), max(split), max(moments), ema and np.concatenate(ema)

found = {}
for kind in experiments:
    begin, rows, weights, _, _, _ = run(kind)
    found[kind] = {"one": {"rows": rows}}
    cases = {
        "product": {
            "mesh": (2, 2, 2),
            "execution": Execution(scan=True, remat="full", loss_chunk=7),
            "step": StepConfig(accumulate=2, ema_decay=0.5),
        },
    }
    if kind == "ar":
        cases |= {
            "fsdp": {"mesh": (1, 8, 1), "execution": Execution(remat="names")},
            "tensor": {"mesh": (1, 1, 4)},
            "splash": {"mesh": (2, 1, 2), "execution": Execution(attention="splash")},
            "triton": {"execution": Execution(attention="triton")},
        }
    for name, case in cases.items():
        _, got, other, split, moments, ema = run(kind, **case, begin=begin)
        apart = float(np.abs(other - weights).max())
        found[kind][name] = {"rows": got, "weights": apart, "split": split, "moments": moments}
        if ema is not None:
            found[kind][name]["ema"] = float(np.abs(ema - other).max())
print(json.dumps(found))
"""

pytestmark = pytest.mark.slow

CASES = [("nar", "product"), *(("ar", case) for case in ("product", "fsdp", "tensor", "splash", "triton"))]


@pytest.fixture(scope="module")
def found(tiny_ar_experiment, tmp_path_factory):
    """Three steps of AR and NAR from the same weights and batches, taken in many ways on eight devices."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "experiment.json").write_text(json.dumps(to_dict(tiny_ar_experiment)))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "experiment.json")],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_step_is_the_same_however_it_is_taken(found, kind, case):
    one, other = found[kind]["one"], found[kind][case]
    np.testing.assert_allclose(other["rows"], one["rows"], rtol=2e-4)
    assert other["weights"] < 2e-3  # Adam turns the last digits of small gradients into steps


@pytest.mark.parametrize(("case", "parts"), [("fsdp", 8), ("tensor", 4), ("product", 4)])
def test_weights_and_moments_are_split_over_fsdp_and_tensor(found, case, parts):
    assert (found["ar"][case]["split"], found["ar"][case]["moments"]) == (parts, parts)


def test_the_running_mean_lags_behind_the_weights(found):
    assert 0 < found["ar"]["product"]["ema"] < 1
