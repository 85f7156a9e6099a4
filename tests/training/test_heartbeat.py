"""A silent process is named, one that failed takes the others with it, and what an earlier run left is not believed."""

import json
import time

import pytest

from jaxdrl.errors import Stopped, UserError
from jaxdrl.training import heartbeat


def _beat(step=3, ended="", host="tpu-b"):
    return {"host": host, "pid": 7, "stage": "posttrain", "step": step, "time": 0.0, "ended": ended}


def test_a_silent_process_is_named_by_the_readers_clock():
    watch = heartbeat.Watch([1], 10.0)
    assert watch.look({}, 0.0) is None
    assert watch.look({1: _beat(3)}, 5.0) is None and watch.look({1: _beat(3)}, 14.0) is None
    assert watch.look({1: _beat(4)}, 15.0) is None and watch.look({1: _beat(4)}, 24.0) is None
    code, line = watch.look({1: _beat(4)}, 26.0)
    assert code == 75 and "process 1 on tpu-b" in line and "11 s" in line and "stage posttrain, step 4" in line


@pytest.mark.parametrize(("ended", "code"), [("mistake: config.x is wrong", 2), ("failure: out of memory", 75)])
def test_a_failure_elsewhere_is_passed_on(ended, code):
    watch = heartbeat.Watch([1], 10.0)
    watch.look({1: _beat(2)}, 0.0)
    found = watch.look({1: _beat(3, ended)}, 1.0)
    assert found[0] == code and ended.split(": ")[1] in found[1]


def test_one_that_is_done_may_be_silent_and_one_that_never_came_may_not():
    watch = heartbeat.Watch([1, 2], 10.0)
    watch.look({1: _beat(1)}, 0.0)
    assert watch.look({1: _beat(2, "done")}, 1.0) is None
    code, line = watch.look({1: _beat(2, "done")}, 50.0)
    assert code == 75 and "process 2 has given no sign of life" in line and "never" in line


def test_what_an_earlier_run_left_is_not_believed():
    watch = heartbeat.Watch([1], 10.0)
    old = _beat(9, "mistake: of last week")
    assert watch.look({1: old}, 0.0) is None and watch.look({1: old}, 9.0) is None
    assert watch.look({1: old}, 11.0)[0] == 75


def test_files_say_where_a_run_is_and_how_it_ended(tmp_path):
    for error, ended in (
        (None, "done"),
        (Stopped("x"), "done"),
        (UserError("a\nb"), "mistake: a b"),
        (KeyError(), "failure: KeyError"),
    ):
        beat = heartbeat.Heartbeat()
        try:
            with beat.beating(tmp_path, 0.2, process=3):
                beat.at("pretrain", 12)
                end = time.monotonic() + 5
                while heartbeat.read(tmp_path / heartbeat.FOLDER)[3]["step"] != 12 and time.monotonic() < end:
                    time.sleep(0.01)
                found = heartbeat.read(tmp_path / heartbeat.FOLDER)[3]
                assert (found["stage"], found["step"], found["ended"]) == ("pretrain", 12, "")
                if error:
                    raise error
        except (Stopped, UserError, KeyError) as raised:
            assert raised is error
        assert heartbeat.read(tmp_path / heartbeat.FOLDER)[3]["ended"] == ended


def test_a_thread_leaves_where_another_process_is_silent(tmp_path, capsys):
    left, beat = [], heartbeat.Heartbeat()
    with beat.beating(tmp_path, 0.2, process=1, processes=2, leave=left.append):
        end = time.monotonic() + 5
        while not left and time.monotonic() < end:
            time.sleep(0.02)
    assert left == [75] and "process 0 has given no sign of life" in capsys.readouterr().err


def test_nothing_is_written_where_it_is_off(tmp_path):
    with heartbeat.Heartbeat().beating(tmp_path, 0.0):
        pass
    assert not list(tmp_path.iterdir())


def test_torn_files_are_passed_over(tmp_path):
    (tmp_path / "0.json").write_text('{"host"')
    (tmp_path / "1.json").write_text(json.dumps(_beat()))
    assert heartbeat.read(tmp_path) == {1: _beat()}
