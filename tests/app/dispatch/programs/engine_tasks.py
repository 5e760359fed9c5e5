"""Tasks that engines run in the tests: what they do is in the task's id, what they did is in files."""

import os
import signal
import time
from pathlib import Path


def run(settings_values, task_id, attempt):
    """``wait``: until told to go on. ``raise``, ``die``: go wrong. Anything else: return at once."""
    folder = Path(settings_values["folder"])
    name = f"{task_id}-{attempt}"
    with (folder / f"{name}.started").open("a") as started:
        started.write(f"{os.getpid()}\n")
    if task_id.startswith("raise"):
        raise ValueError(f"{name} went wrong")
    if task_id.startswith("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    while task_id.startswith("wait") and not (folder / f"{name}.go").exists():
        time.sleep(0.01)
    (folder / f"{name}.finished").touch()
    return "done"


class NoSuchThing:
    """Can be sent, and cannot be received."""

    def __reduce__(self):
        return os._exit, (3,)


def prepare(threads):
    """Leave a note of what was told before any task was run; then fail, which is nobody's concern but the tasks'."""
    folder = Path(os.environ["PREPARED_IN"])
    (folder / f"prepared-{os.getpid()}").write_text(str(threads))
    raise RuntimeError("nothing can be prepared here")
