"""Progress on a terminal and in a log."""

import io

from rich.console import Console

from app.cli.progress import JobProgress, job_progress, transfer_progress
from app.report import quantities


def document(done: int, eta: float | None = None) -> dict[str, object]:
    return {
        "stage": "measure",
        "done": done,
        "total": 10,
        "unit": "entries",
        "fraction": done / 10,
        "eta_seconds": eta,
    }


def test_in_a_log_each_stage_and_each_tenth_is_a_line() -> None:
    text = io.StringIO()
    with job_progress(Console(file=text, width=100)) as progress:
        progress.update("queued", None)
        for done in (0, 0, 1, 1, 2):
            progress.update("running", document(done, eta=75.0))
        progress.update("running", {"stage": "solve", "fraction": 0.2})
        progress.update(
            "running", {"stage": "refine", "fraction": 0.25, "done": 1, "total": 4, "unit": "parts"}
        )
        over = {"stage": None, "done": 7, "total": 7, "unit": "plans", "fraction": 1.0, "eta_seconds": 0.0}
        progress.update("done", over)
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    assert lines == [
        "queued",
        "measuring: 0 % (0/10 entries), 1 min 15 s left",
        "measuring: 10 % (1/10 entries), 1 min 15 s left",
        "measuring: 20 % (2/10 entries), 1 min 15 s left",
        "solving: 20 %",
        "refining plans: 25 % (1/4 parts)",
        "done: 100 % (7/7 plans)",
    ]


def test_a_log_is_not_silent_for_longer_than_a_minute() -> None:
    text, now = io.StringIO(), [0.0]
    progress = JobProgress(Console(file=text, width=100), None, clock=lambda: now[0])
    for moment, done in ((0, 1), (59, 1), (61, 1), (100, 1), (110, 2), (169, 2), (171, 2)):
        now[0] = float(moment)
        progress.update("running", document(done))
    shown = [line.split("(")[1].split("/")[0] for line in text.getvalue().splitlines()]
    assert shown == ["1", "1", "2", "2"], "at 0, 61, 110 and 171 seconds"


def test_more_to_do_than_was_thought_is_a_line() -> None:
    text = io.StringIO()
    with job_progress(Console(file=text, width=100)) as progress:
        for done, total in ((9, 10), (9, 18), (10, 18), (11, 18)):
            progress.update("running", document(done) | {"total": total, "fraction": done / total})
    assert [line.split("(")[1].split(" ")[0] for line in text.getvalue().splitlines()] == [
        "9/10",
        "9/18",
        "11/18",
    ]


def test_on_a_terminal_there_is_a_bar_with_the_time_left() -> None:
    text = io.StringIO()
    with job_progress(Console(file=text, width=100, force_terminal=True)) as progress:
        progress.update("running", document(4, eta=3.0))
    shown = text.getvalue()
    for words in ("measuring", "40 %", "4/10 entries", "3.0", "left"):
        assert words in shown


def test_on_a_narrow_terminal_the_details_give_way_not_the_time_left() -> None:
    text = io.StringIO()
    detail = "step 1 around the plans of 2.25 bits, 2.5 bits, 3 bits, 4 bits and 5 bits, 3 of 25 parts"
    with job_progress(Console(file=text, width=80, force_terminal=True)) as progress:
        progress.update("running", document(4, eta=838.0) | {"detail": detail})
    shown = text.getvalue()
    for words in (
        "measuring",
        "40 %",
        "4/10 entries",
        f"{quantities.duration(838.0)} left",
        "\N{HORIZONTAL ELLIPSIS}",
    ):
        assert words in shown


def test_what_is_told_more_closely_comes_with_the_counts() -> None:
    text = io.StringIO()
    told = document(4) | {"detail": "step 1 around the plan of 4 bits, 3 of 5 parts"}
    with job_progress(Console(file=text, width=40)) as progress:
        progress.update("running", told)
    (line,) = text.getvalue().splitlines()  # in one piece, wider than the console
    assert "(4/10 entries: step 1 around the plan of 4 bits, 3 of 5 parts)" in line


def test_an_upload_in_a_log_is_one_line() -> None:
    text = io.StringIO()
    with transfer_progress(Console(file=text, width=20), "[/m] final.pt2", 2_000_000) as sent:
        sent(1)
        sent(2_000_000)
    (line,) = text.getvalue().splitlines()
    assert " ".join(line.split()) == "uploading [/m] final.pt2 (2.00 MB)"


def test_an_upload_on_a_terminal_is_a_bar() -> None:
    text = io.StringIO()
    with transfer_progress(
        Console(file=text, width=100, force_terminal=True), "m[/x].pt2", 2_000_000
    ) as sent:
        sent(1_000_000)
    assert "m[/x].pt2" in text.getvalue()
