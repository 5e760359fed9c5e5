"""Log lines as ``key=value`` pairs, each with an ``action`` and the ids it is about."""

import json
import logging
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def line(action: str, **fields: object) -> str:
    """One log message.

    >>> line("task_started", task_id="tsk_1", unit="conv 1")
    'action=task_started task_id=tsk_1 unit="conv 1"'
    """
    pairs = [("action", action), *((k, v) for k, v in fields.items() if v is not None)]
    return " ".join(f"{name}={_plain(value)}" for name, value in pairs)


def _plain(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text and not set(text) & set(' "=\n\r\t') else json.dumps(text, ensure_ascii=False)


def configure(level: int = logging.INFO) -> None:
    """Send this process's log lines to standard error, where the supervisor reads them."""
    logging.basicConfig(level=level, format=FORMAT, stream=sys.stderr, force=True)
    for noisy in ("distributed", "asyncio", "tornado", "httpx", "httpcore", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A client that loses its scheduler says so with several tracebacks; the engine says it in one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
