"""A stage for the dispatcher: a real database, and an engine whose every move the test decides."""

from sqlalchemy import select

from app.db import get_database
from app.dispatch.dispatcher import Dispatcher
from app.dispatch.engine import Phase, Report, engine_key
from app.errors import EngineUnavailable
from app.models import Task, TaskState, utc_now


class FakeEngine:
    """Remembers what it was asked for; the test moves the phases."""

    def __init__(self, capacity=10):
        self.room = capacity
        self.reports = {}
        self.submitted = []
        self.cancelled = []
        self.down = False
        self.closed = False

    def submit(self, key, *, task_id, attempt, priority):
        if self.down:
            raise EngineUnavailable("down")
        assert key not in self.submitted, "a key was used twice"
        self.submitted.append(key)
        self.reports[key] = Report(phase=Phase.RUNNING)

    def status(self, key):
        if self.down:
            return Report(phase=Phase.RUNNING)
        return self.reports.get(key, Report(phase=Phase.UNKNOWN))

    def cancel(self, key):
        self.cancelled.append(key)
        self.reports[key] = Report(phase=Phase.LOST)

    def when_ended(self, tell):
        self.tell = tell

    def capacity(self):
        return 0 if self.down else self.room

    def close(self):
        self.closed = True

    def move(self, key, phase, error=""):
        self.reports[key] = Report(phase=phase, error=error)


class Theatre:
    """A database, an engine, a dispatcher, and short words for them."""

    def __init__(self, settings, engine=None, **values):
        self.settings = settings
        self.database = get_database(settings.resolved_database_url)
        self.engine = engine or FakeEngine()
        self.concluded = []
        self.dispatcher = self.another(**values)

    def another(self, **values):
        return Dispatcher(self.settings, self.engine, conclude=self.conclude, **values)

    def conclude(self, _session, job_id):
        self.concluded.append(job_id)

    def tick(self, times=1):
        return [self.dispatcher.tick() for _ in range(times)][-1]

    def add(self, make, *arguments, **values):
        with self.database.write() as session:
            return make(session, *arguments, **values).id

    def get(self, kind, row_id):
        with self.database.read() as session:
            return session.get_one(kind, row_id)

    def tasks(self, job_id=None, kind=None):
        with self.database.read() as session:
            rows = session.scalars(select(Task).order_by(Task.created_at, Task.ordinal, Task.id)).all()
        return [t for t in rows if (job_id is None or t.job_id == job_id) and kind in (None, t.kind)]

    def set(self, kind, row_id, **values):
        with self.database.write() as session:
            row = session.get_one(kind, row_id)
            for name, value in values.items():
                setattr(row, name, value)

    def work(self, job_id, kind):
        """Workers finish all running tasks of a kind, as `run_task` does: in the row first."""
        for task in self.tasks(job_id, kind):
            if task.state is TaskState.RUNNING:
                self.set(Task, task.id, state=TaskState.DONE, finished_at=utc_now())
                self.engine.move(engine_key(task.id, task.attempt), Phase.FINISHED)
