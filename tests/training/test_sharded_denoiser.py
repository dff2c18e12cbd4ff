"""A denoiser's step on several devices is the step on one."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import dataclasses, json
import jax, numpy as np
from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.data.sound_batches import SoundBatch, SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.sharding.mesh import MeshConfig, arrange, place_batch
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.experiment import program_of
from voxinstruct_jax.training.optimizer import make_optimizer
from voxinstruct_jax.training.step import StepConfig, build_trainer

latents = LatentConfig(mel=MelConfig(sample_rate=8000, num_mels=8, n_fft=256, hop_length=128, f_max=4000.0))
tiny = MMDiTConfig.instructaudio_tiny(8, (12,), 20)
encoder = dataclasses.replace(tiny.text_encoder, model_dim=32, num_layers=1, ffn_dim=32)
small = {"model_dim": 32, "rotary_dims": 8, "text_dim": 32, "text_encoder": encoder}
phones = dataclasses.replace(tiny.phones, model_dim=32, num_layers=1, ffn_dim=32)
model = dataclasses.replace(tiny, source=True, joint_blocks=3, single_blocks=2, phones=phones, **small)
experiment = DiffusionExperiment(
    model=model, latents=latents, diffusion=SYSTEMS["instructaudio"], data=SoundData(clip_s=0.5, rows=8)
)
random = np.random.default_rng(0)
batch = SoundBatch(
    target=random.standard_normal((8, 4000)).astype(np.float32),
    source=random.standard_normal((8, 4000)).astype(np.float32),
    num_samples=random.integers(1000, 4000, 8, dtype=np.int32),
    prefix_samples=np.array([0, 600] * 4, np.int32),
    tags=np.array([0, 2, 1, 2] * 2, np.int32),
    text_tokens=random.integers(0, 12, (8, 10, 1), dtype=np.int32),
    phones=np.sort(random.integers(0, 20, (8, 9), dtype=np.int32))[:, ::-1].copy(),
    row_ids=np.arange(8, dtype=np.int32),
)

def run(sizes, execution=Execution(), begin=None):
    mesh = arrange(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]), jax.devices()[: int(np.prod(sizes))])
    changed = dataclasses.replace(experiment, execution=execution)
    program, optimizer = program_of(changed), make_optimizer(changed.optimizer)
    trainer = build_trainer(program.build_model, program.objective, optimizer, mesh, seed=0, config=StepConfig())
    begin = begin or jax.device_get(trainer.init())
    # zeros at the start would hide most of the network
    noisy = np.random.default_rng(1)
    if sizes == (1, 1, 1):
        params = jax.tree.map(lambda w: w + 0.05 * noisy.standard_normal(w.shape).astype(w.dtype), begin.params)
        begin = dataclasses.replace(begin, params=params)
    placement = jax.tree.map(lambda leaf: leaf.sharding, trainer.shapes)
    state, rows = jax.device_put(begin, placement), []
    for _ in range(2):
        state, metrics = trainer.step(state, place_batch(mesh, batch))
        rows.append([float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")])
    split = [len({str(s.index) for s in leaf.addressable_shards}) for leaf in jax.tree.leaves(state.params)]
    return begin, rows, max(split)

begin, one, _ = run((1, 1, 1))
_, many, split = run((2, 2, 2), Execution(scan=True, remat="full"), begin)
print(json.dumps({"one": one, "many": many, "split": split}))
"""


pytestmark = pytest.mark.slow


def test_on_a_mesh_of_all_axes_it_is_the_same_step():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["split"] == 4
    for alone, shared in zip(found["one"], found["many"], strict=True):
        assert shared == pytest.approx(alone, rel=2e-4)
