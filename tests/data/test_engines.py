import os
import signal
from pathlib import Path

import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data import engines
from voxinstruct_jax.data.engines import ATTEMPTS, open_engine


def note(unit):
    """Leaves a file; the first time that it meets a unit named so, the process is killed."""
    folder, number, deaths = unit
    marks = len(list(Path(folder).glob(f"death-{number}-*")))
    if marks < deaths:
        (Path(folder) / f"death-{number}-{marks}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(folder) / f"unit-{number}").write_text(os.environ["OPENBLAS_NUM_THREADS"])
    return 2


def fail(unit):
    raise InputError(f"unit {unit} is wrong")


def waiting(folder, deaths):
    return lambda: (
        (str(folder), number, deaths.get(number, 0)) for number in range(5) if not (folder / f"unit-{number}").exists()
    )


def test_every_unit_is_done_and_counted_by_rows(tmp_path):
    ticks = []
    open_engine("local", 2)(note, waiting(tmp_path, {}), lambda: ticks.append(1))
    assert sorted(path.read_text() for path in tmp_path.glob("unit-*")) == ["1"] * 5
    assert len(ticks) == 10


def test_a_killed_worker_loses_nothing(tmp_path):
    open_engine("local", 2)(note, waiting(tmp_path, {1: 1, 3: 1}), lambda: None)
    assert len(list(tmp_path.glob("unit-*"))) == 5
    assert len(list(tmp_path.glob("death-*"))) == 2


def test_workers_that_always_die_end_the_run_with_one_line(tmp_path):
    with pytest.raises(InputError, match=r"worker processes ended 3 times.*fewer --workers"):
        open_engine("local", 1)(note, waiting(tmp_path, {4: ATTEMPTS}), lambda: None)


def test_the_error_of_a_unit_is_that_of_the_run():
    with pytest.raises(InputError, match="unit 7 is wrong"):
        open_engine("local", 1)(fail, lambda: [7], lambda: None)


@pytest.mark.slow
def test_ray_does_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine starts slowly
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[2]}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ticks = []
    engines._connect(ray, 1)  # once for both runs: a cluster takes seconds to start
    try:
        open_engine("ray", 1)(note, waiting(tmp_path, {2: 1}), lambda: ticks.append(1))
        assert len(list(tmp_path.glob("unit-*"))) == 5
        assert len(ticks) == 10
        with pytest.raises(InputError, match=r"^unit 7 is wrong$"):
            open_engine("ray", 1)(fail, lambda: [7], lambda: None)
    finally:
        ray.shutdown()


def test_ray_is_asked_for_only_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("voxinstruct_jax.data.engines.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--engine ray needs Ray"):
        open_engine("ray", 1)
