"""The decisions under any order of events: Hypothesis plays users, workers, failures and forgetful engines.

The world below carries instructions out as the database does: only while the row is in the states they start from.
"""

from collections import Counter
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.dispatch.engine import Phase, Report
from app.dispatch.lifecycle import (
    CancelTasks,
    ConcludeJob,
    EnterStage,
    FailJob,
    GiveUp,
    JobView,
    Requeue,
    StartJob,
    TaskView,
    after_failure,
    decide,
    judge,
)
from app.models import JobState as J
from app.models import Stage
from app.models import TaskKind as K
from app.models import TaskState as T

ENTRIES = 3
ATTEMPTS = 3
ROUNDS = 2
BEFORE = {Stage.SOLVE: (Stage.PROBE, Stage.MEASURE), Stage.VERIFY: (Stage.SOLVE,)}
WORK_BEFORE = {Stage.SOLVE: (K.PROBE, K.MEASURE), Stage.VERIFY: (K.SOLVE,)}
OPEN = (T.PENDING, T.RUNNING)


@dataclass
class Task:
    kind: K
    state: T = T.PENDING
    attempt: int = 0
    failures: int = 0
    entries: int = 0


class World(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.job, self.stage = J.QUEUED, None
        self.tasks: list[Task] = []
        self.rounds = 0
        self.late: list = []
        self.engine: dict[tuple[int, int], Phase] = {}
        self.ever_submitted: set[tuple[int, int]] = set()
        self.computed: Counter = Counter()
        self.ended: J | None = None
        self.done_before: set[int] = set()

    @initialize(estimates=st.booleans())
    def begin(self, estimates):
        """What a job begins with: its probes, or all its entries."""
        self.tasks = [Task(K.PROBE if estimates else K.MEASURE) for _ in range(3)]

    @property
    def estimates(self) -> bool:
        return any(t.kind is K.PROBE for t in self.tasks)

    def view(self, number: int) -> TaskView:
        task = self.tasks[number]
        return TaskView(id=str(number), attempt=task.attempt, failures=task.failures)

    def apply(self, step):
        match step:
            case StartJob() if self.job is J.QUEUED:
                self.job, self.stage = J.RUNNING, Stage.PROBE if self.estimates else Stage.MEASURE
            case EnterStage(stage=stage) if self.may_enter(stage):
                self.stage = stage
                if stage is Stage.SOLVE:
                    self.tasks.append(Task(K.SOLVE))
            case ConcludeJob() if self.job is J.RUNNING:
                self.job = J.DONE
            case FailJob() if not self.job.final:
                self.job = J.FAILED
            case CancelTasks():
                for task in self.tasks:
                    if task.state in (T.PENDING, T.RUNNING):
                        task.state = T.CANCELLED

    def may_enter(self, stage: Stage) -> bool:
        is_open = any(t.kind in WORK_BEFORE[stage] and t.state in OPEN for t in self.tasks)
        return self.job is J.RUNNING and self.stage in BEFORE[stage] and not is_open

    def solved(self, asks: bool):
        """What a SOLVE task writes as it ends: entries that are still needed, or plans."""
        if asks and self.estimates and self.rounds < ROUNDS:
            self.rounds += 1
            self.stage = Stage.MEASURE
            self.tasks += [Task(K.MEASURE), Task(K.MEASURE)]
        else:
            self.tasks += [Task(K.VERIFY), Task(K.VERIFY)]

    def apply_to_task(self, step):
        match step:
            case Requeue(task_id=i, attempt=a, failed=failed) if self.is_at(int(i), a):
                task = self.tasks[int(i)]
                task.state, task.attempt, task.failures = T.PENDING, a + 1, task.failures + failed
            case GiveUp(task_id=i, attempt=a) if self.is_at(int(i), a):
                self.tasks[int(i)].state = T.FAILED

    def is_at(self, number: int, attempt: int) -> bool:
        task = self.tasks[number]
        return task.state is T.RUNNING and task.attempt == attempt

    def decided(self):
        counts = Counter((t.kind, t.state) for t in self.tasks)
        return decide(JobView(id="j", state=self.job, stage=self.stage, tasks=counts))

    @rule()
    def another_dispatcher_decides_and_falls_asleep(self):
        self.late += [step for step in self.decided() if isinstance(step, EnterStage | StartJob)]

    @rule()
    def and_carries_it_out_much_later(self):
        while self.late:
            self.apply(self.late.pop(0))

    @rule()
    def dispatch(self):
        """One round of a dispatcher: read, decide, carry out, start what waits."""
        for step in self.decided():
            self.apply(step)
        for number, task in enumerate(self.tasks):
            if task.state is T.RUNNING:
                phase = self.engine.get((number, task.attempt), Phase.UNKNOWN)
                self.apply_to_task(judge(self.view(number), Report(phase=phase), attempts=ATTEMPTS))

    @precondition(lambda self: not self.job.final)
    @rule(data=st.data(), crash=st.booleans())
    def start_a_task(self, data, crash):
        waiting = [i for i, t in enumerate(self.tasks) if t.state is T.PENDING]
        if not waiting:
            return
        number = data.draw(st.sampled_from(waiting))
        self.apply(StartJob(job_id="j"))
        self.tasks[number].state = T.RUNNING
        key = (number, self.tasks[number].attempt)
        if not crash:  # else the dispatcher died between writing the row and telling the engine
            assert key not in self.ever_submitted, "a key was used twice"
            self.ever_submitted.add(key)
            self.engine[key] = Phase.RUNNING

    def running_keys(self):
        return sorted(key for key, phase in self.engine.items() if phase is Phase.RUNNING)

    @precondition(lambda self: self.running_keys())
    @rule(data=st.data(), asks=st.booleans())
    def a_worker_goes_on(self, data, asks):
        """One entry, or the end; a worker whose attempt is not wanted any more stops (fencing)."""
        number, attempt = key = data.draw(st.sampled_from(self.running_keys()))
        task = self.tasks[number]
        if not self.is_at(number, attempt) or self.job is not J.RUNNING:
            self.engine[key] = Phase.FINISHED
        elif task.kind is K.MEASURE and task.entries < ENTRIES:
            task.entries += 1
            self.computed[number] += 1
        else:
            task.state = T.DONE
            self.engine[key] = Phase.FINISHED
            if task.kind is K.SOLVE:
                self.solved(asks)

    @precondition(lambda self: self.running_keys())
    @rule(data=st.data(), permanent=st.booleans(), told=st.booleans())
    def a_worker_fails(self, data, permanent, told):
        number, attempt = key = data.draw(st.sampled_from(self.running_keys()))
        if told and self.is_at(number, attempt) and self.job is J.RUNNING:
            self.apply_to_task(after_failure(self.view(number), permanent=permanent, attempts=ATTEMPTS))
            self.engine[key] = Phase.FINISHED
        else:
            self.engine[key] = Phase.ERROR

    @rule(data=st.data())
    def the_engine_forgets(self, data):
        for key in self.running_keys():
            outcome = data.draw(st.sampled_from([Phase.RUNNING, Phase.LOST, Phase.UNKNOWN]))
            if outcome is Phase.UNKNOWN:
                del self.engine[key]
            else:
                self.engine[key] = outcome

    @precondition(lambda self: not self.job.final)
    @rule(really=st.integers(0, 9))
    def a_user_cancels(self, really):
        if really == 0:
            self.job = J.CANCELLED

    @invariant()
    def final_states_are_final(self):
        if self.ended is not None:
            assert self.job is self.ended
        if self.job.final:
            self.ended = self.job

    @invariant()
    def no_work_is_lost_or_done_twice(self):
        done = {i for i, t in enumerate(self.tasks) if t.state is T.DONE}
        assert self.done_before <= done
        self.done_before = done
        assert all(count <= ENTRIES for count in self.computed.values())

    @invariant()
    def a_job_is_done_only_when_all_is_done(self):
        if self.job is J.DONE:
            assert all(t.state is T.DONE for t in self.tasks)
            first = {K.PROBE: 3} if self.estimates else {K.MEASURE: 3}
            made = Counter(first) + Counter(
                {K.MEASURE: 2 * self.rounds, K.SOLVE: 1 + self.rounds, K.VERIFY: 2}
            )
            assert Counter(t.kind for t in self.tasks) == made

    @invariant()
    def one_search_at_a_time_and_none_while_its_data_are_not_there(self):
        searching = [t for t in self.tasks if t.kind is K.SOLVE and t.state in OPEN]
        assert len(searching) <= 1
        if searching and not self.job.final:
            assert not any(t.kind in WORK_BEFORE[Stage.SOLVE] and t.state in OPEN for t in self.tasks)

    @invariant()
    def failures_stay_within_bounds(self):
        assert all(t.failures < ATTEMPTS for t in self.tasks if t.state is not T.FAILED)

    @rule(asks=st.booleans())
    def a_quiet_round(self, asks):
        """All that waits is started, and all that runs gets done."""
        self.dispatch()
        for number, task in enumerate(self.tasks):
            if task.state is T.PENDING and not self.job.final:
                self.apply(StartJob(job_id="j"))
                task.state = T.RUNNING
                self.ever_submitted.add((number, task.attempt))
                self.engine[number, task.attempt] = Phase.RUNNING
        for number, attempt in self.running_keys():
            while self.engine[number, attempt] is Phase.RUNNING:
                self.quiet_step(number, attempt, asks)

    def teardown(self):
        """From wherever it is, a quiet world brings the job to an end, with nothing left open."""
        for _ in range(200):
            self.a_quiet_round(asks=True)
            if self.job.final and not any(t.state in (T.PENDING, T.RUNNING) for t in self.tasks):
                return
        raise AssertionError(f"the job hangs: {self.job} {self.stage} {self.tasks}")

    def quiet_step(self, number, attempt, asks):
        task = self.tasks[number]
        if self.is_at(number, attempt) and self.job is J.RUNNING:
            task.entries, task.state = ENTRIES, T.DONE
            if task.kind is K.SOLVE:
                self.solved(asks)
        self.engine[number, attempt] = Phase.FINISHED


World.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
test_any_order_of_events = World.TestCase


def test_an_instruction_from_an_earlier_round_does_nothing():
    world = World()
    world.begin(estimates=True)
    world.a_quiet_round(asks=True)
    world.another_dispatcher_decides_and_falls_asleep()
    world.a_quiet_round(asks=True)
    assert (world.stage, len(world.late)) == (Stage.MEASURE, 1)
    world.and_carries_it_out_much_later()
    world.one_search_at_a_time_and_none_while_its_data_are_not_there()
    assert world.stage is Stage.MEASURE
    world.teardown()
    assert (world.job, world.rounds) == (J.DONE, ROUNDS)
