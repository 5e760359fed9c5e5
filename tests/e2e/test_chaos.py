"""Real processes, real SIGKILLs: whatever dies, the work goes on by itself, and nothing finished is done again.

The moments are chosen by what is in the database, so that each run hits the same stages of a job.
"""

import importlib.util
import signal
import sys
from pathlib import Path

import psutil
import pytest

from app.models import JobState, Stage, TaskKind, TaskState

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

_spec = importlib.util.spec_from_file_location("bitwright_stack", Path(__file__).with_name("stack.py"))
stack_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = stack_module
_spec.loader.exec_module(stack_module)
Stack, make_files, wait_until = stack_module.Stack, stack_module.make_files, stack_module.wait_until


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory, files):
    stack = Stack(tmp_path_factory.mktemp("stack") / "data")
    stack.start()
    stack.upload(*files)
    yield stack
    stack.stop()


def test_everything_is_killed_in_turn_and_the_job_gets_done(stack):
    job_id = stack.submit()

    stack.await_rows(job_id, 3)
    stack.kill("worker-0")

    stack.await_rows(job_id, 10)
    stack.kill("scheduler")

    stack.await_rows(job_id, 17)
    stack.kill("api")

    stack.await_rows(job_id, 24)
    stack.kill_supervisor()
    before = stack.rows(job_id)
    assert stack.job(job_id).state is JobState.RUNNING
    stack.start()
    assert stack.rows(job_id) >= before

    stack.await_rows(job_id, 31)
    stack.kill("worker-0")
    stack.kill("worker-1")

    stack.await_done(job_id)
    stack.assert_nothing_was_computed_again(job_id)


def test_a_cancelled_job_stops_within_one_entry(stack):
    kills = stack.kills
    job_id = stack.submit(scheme="channel-symmetric")
    stack.await_rows(job_id, 4)
    answer = stack.post(f"/jobs/{job_id}/cancel")
    at_cancel = stack.rows(job_id)
    assert answer["state"] == "cancelled"
    wait_until(lambda: all(task.finished_at for task in stack.tasks(job_id)))
    assert {task.state for task in stack.tasks(job_id)} <= {TaskState.CANCELLED, TaskState.DONE}
    assert stack.rows(job_id) <= at_cancel + 2, "each of the two workers may finish the entry in hand"
    assert stack.kills == kills
    assert set(stack.children()) == {"scheduler", "api", "worker-0", "worker-1"}

    again = stack.submit(scheme="channel-symmetric")  # the workers are free, and what is measured is not lost
    stack.await_done(again)
    stack.assert_nothing_was_computed_again(again)


def test_workers_die_while_they_estimate_and_while_a_round_is_measured(stack):
    earlier = stack.probes()
    job_id = stack.submit(metric="auto", scheme="channel-symmetric", regret=0.0005, refine_rounds=0)

    wait_until(lambda: any(task.worker for task in stack.tasks(job_id)))
    stack.kill("worker-0")
    wait_until(lambda: any(task.state is TaskState.DONE for task in stack.tasks(job_id)))
    assert stack.job(job_id).stage is Stage.PROBE, "too late to hurt: the job has estimated everything"
    before = stack.probes()
    stack.kill("worker-1")

    wait_until(lambda: stack.rows(job_id) >= 2 or stack.job(job_id).state.final)
    assert stack.job(job_id).stage is Stage.MEASURE, "too late to hurt: the round is measured"
    stack.kill("worker-0")
    stack.kill("worker-1")

    stack.await_done(job_id)
    stack.assert_nothing_was_computed_again(job_id)
    after = stack.probes()
    assert before.items() <= after.items(), "what is estimated stays"
    assert len(after) - len(earlier) == 4
    tasks = stack.tasks(job_id)
    rounds = sum(task.kind is TaskKind.SOLVE for task in tasks) - 1
    assert rounds >= 1
    ordinals = sorted(task.ordinal for task in tasks if task.kind is TaskKind.MEASURE)
    assert ordinals == list(range(len(ordinals)))


def test_ctrl_c_ends_everything(stack):
    children = list(stack.children().values())
    assert len(children) == 4
    stack.supervisor.send_signal(signal.SIGINT)
    assert stack.supervisor.wait(20) == 0
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_two_dispatchers_on_postgresql(tmp_path, files, postgres):
    stack = Stack(tmp_path / "data", postgres.create())
    try:
        stack.start()
        second = stack.extra_api()
        apis = {stack.children()["api"].pid, second.pid}
        stack.upload(*files)
        job_id = stack.submit()

        stack.await_rows(job_id, 3)
        first_leader = wait_until(stack.leader)
        assert first_leader in apis
        kill_leader(stack, second)
        taken_over = wait_until(lambda: stack.leader() not in (0, first_leader) and stack.leader())
        assert taken_over != first_leader

        stack.await_rows(job_id, 10)
        stack.kill("worker-1")
        stack.await_rows(job_id, 17)
        stack.kill("scheduler")

        stack.await_done(job_id)
        stack.assert_nothing_was_computed_again(job_id)
    finally:
        stack.stop()


def kill_leader(stack, second):
    if stack.leader() == second.pid:
        stack.kills += 1
        second.kill()
        second.wait()
    else:
        stack.kill("api")
