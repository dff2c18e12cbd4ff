import json

import pytest

from voxinstruct_jax.training.events import EventLog, goodput, read_events


def test_events_are_appended_and_a_torn_line_is_left_out(tmp_path):
    EventLog(tmp_path).write("start", 0, seconds=1.5)
    EventLog(tmp_path, active=False).write("start", 0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "st')
    [event] = read_events(tmp_path)
    assert (event["event"], event["step"], event["seconds"]) == ("start", 0, 1.5)
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])["time"] > 0


def steps(time, step, seconds, **waited):
    return {"event": "steps", "time": time, "step": step, "seconds": seconds, **waited}


def test_time_is_shared_out_by_reason():
    events = [
        {"event": "start", "time": 0.0, "step": 0, "seconds": 10.0},
        steps(20.0, 10, 20.0, compiling_seconds=10.0, data_seconds=2.0, saving_seconds=0.0),
        steps(40.0, 20, 20.0, data_seconds=0.0, saving_seconds=4.0),
        {"event": "end", "time": 40.0, "step": 20},
    ]
    shares = goodput(events)
    assert shares["productive"] == pytest.approx((8 + 16) / 50)  # the start began before its event
    assert shares["compiling"] == pytest.approx(10 / 50)
    assert shares["data"] == pytest.approx(2 / 50)
    assert shares["saving"] == pytest.approx(4 / 50)
    assert shares["starting"] == pytest.approx(10 / 50)
    assert sum(shares.values()) == pytest.approx(1)


def test_steps_that_are_done_again_count_once_and_a_pause_is_told():
    events = [
        {"event": "start", "time": 0.0, "step": 0, "seconds": 0.0},
        steps(20.0, 20, 20.0),  # killed here; the last state is that of step 10
        {"event": "start", "time": 40.0, "step": 10, "seconds": 0.0},
        steps(60.0, 30, 20.0),
        {"event": "end", "time": 60.0, "step": 30},
    ]
    shares = goodput(events)
    assert shares["productive"] == pytest.approx(30 / 60)
    assert shares["rolled_back"] == pytest.approx(10 / 60)
    assert shares["not_running"] == pytest.approx(20 / 60)


def test_nothing_is_said_of_a_run_that_has_not_begun():
    assert goodput([]) == {}
