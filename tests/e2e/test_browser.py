"""The pages in a real browser: drawn, live, usable by keyboard, safe, and silent towards the outside."""

import re
from urllib.parse import urlsplit

import pytest

from app.db import get_database
from app.models import (
    Job,
    JobEntry,
    JobState,
    Measurement,
    PartKind,
    Plan,
    Stage,
    Task,
    TaskKind,
    TaskState,
    TrialPart,
    utc_now,
)
from app.report.quantities import number, size
from app.settings import Settings
from tests.app.dashboard import rows, samples
from tests.app.dashboard.browsing import Visit, chromium, serving_dashboard

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(data_dir=tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def origin(settings):
    with serving_dashboard(settings) as url:
        yield url


@pytest.fixture
def database(settings, origin):
    """Where the running service keeps its rows."""
    return get_database(settings.resolved_database_url)


@pytest.fixture(scope="module")
def document():
    return samples.result_document()


@pytest.fixture(scope="module")
def done(settings, origin, document):
    """A finished job that no test changes."""
    with get_database(settings.resolved_database_url).write() as session:
        return rows.store(session, document).id


@pytest.fixture
def visit(browser, origin):
    """Opens pages; in the end no page may have complained or asked anyone but the service."""
    visits = []

    def opened(path="/", **options):
        visits.append(Visit(browser, origin, **options))
        return visits[-1].open(path)

    yield opened
    for one in visits:
        one.close()
        assert one.complaints == []
        assert {f"{u.scheme}://{u.netloc}" for u in map(urlsplit, one.requests)} <= {origin}


def figure(page, name):
    """What the plotting library holds for a figure."""
    page.wait_for_selector(f'[data-figure="{name}"] .main-svg')
    return page.evaluate(
        """name => { const box = document.querySelector(`[data-figure="${name}"]`);
        return {data: box.data, font: box._fullLayout.font.color, width: box._fullLayout.width}; }""",
        name,
    )


def trace(page, name, trace_name):
    return next(t for t in figure(page, name)["data"] if t["name"] == trace_name)


def begin(database, document, measured, unique):
    """A job that has begun to measure."""
    with database.write() as session:
        return rows.store(session, samples.running(document, measured), unique=unique).id


def measure(database, document, job_id, upto):
    """Write the job's measurements up to a number of entries."""
    with database.write() as session:
        query = session.query(JobEntry).filter_by(job_id=job_id).order_by(JobEntry.ordinal)
        for row, entry in zip(query.limit(upto), document["sensitivities"], strict=False):
            if session.get(Measurement, row.key) is None:
                session.add(rows.measurement(row.key, "0" * 64, entry))


def finish(database, document, job_id):
    """Add the plans and end the job."""
    with database.write() as session:
        job = session.get_one(Job, job_id)
        for plan in (*document["plans"], *document["baselines"]):
            session.add(rows.plan_row(job, plan))
        job.state, job.stage = JobState.DONE, None
        job.measured_at = job.solved_at = job.finished_at = utc_now()


def test_figures_hold_the_documents_numbers(visit, done, document):
    page = visit(f"/jobs/{done}")
    names = [u["name"] for u in document["units"]]
    costs = trace(page, "heat-map", "cost")
    entry = document["sensitivities"][20]
    cell = costs["z"][samples.BITS.index(entry["bits"])][names.index(entry["unit"])]
    assert 10**cell == pytest.approx(entry["mean"])
    assert costs["customdata"][0][0][0] == names[0]
    measured = trace(page, "frontier", "plan, measured")
    assert measured["y"] == [p["measured"]["kl"]["evaluation"] for p in document["plans"]]
    drawn = sum(len(bars["x"]) for bars in figure(page, "bits")["data"])
    assert drawn == len(names)
    assert len(trace(page, "costs", "predicted")["x"]) == 8


def test_hovering_tells_the_full_name(visit, done, document):
    page = visit(f"/jobs/{done}")
    cell = page.locator('[data-figure="heat-map"] .nsewdrag').first
    cell.scroll_into_view_if_needed()
    box = cell.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = page.locator('[data-figure="heat-map"] .hoverlayer .hovertext').first
    text.wait_for()
    assert (
        document["units"][8]["name"] in text.text_content()
        or document["units"][7]["name"] in text.text_content()
    )
    assert "samples" in text.text_content()


def test_figures_offer_no_upload(visit, done):
    page = visit(f"/jobs/{done}")
    figure(page, "frontier")
    titles = page.evaluate(
        "[...document.querySelectorAll('#frontier .modebar-btn')].map(b => b.dataset.title)"
    )
    assert len(titles) == 4
    assert not [t for t in titles if re.search("share|cloud|edit|studio", t, re.IGNORECASE)]


def test_progress_is_live_and_the_result_appears_by_itself(visit, database, document):
    job = begin(database, document, 10, "live")
    page = visit(f"/jobs/{job}")
    page.get_by_text("10 of 96 entries").wait_for()
    measure(database, document, job, 40)
    page.get_by_text("40 of 96 entries").wait_for()
    assert page.locator("#progress progress").evaluate("bar => bar.value") == pytest.approx(40 / 96)
    assert re.search(r"about .* left|nearly there", page.locator("[data-eta]").text_content())
    page.wait_for_function(
        """() => document.querySelector('[data-figure="heat-map"]').data[0].z.flat().filter(z => z !== null).length === 40"""
    )
    page.evaluate("window.sameDocument = true")
    measure(database, document, job, 96)
    finish(database, document, job)
    page.get_by_text("Proven optimal.").wait_for()
    assert page.locator("#progress").count() == 0
    assert page.get_by_role("button", name="Cancel job").count() == 0
    assert page.evaluate("window.sameDocument")
    sections = page.evaluate("[...document.querySelectorAll('main > *')].map(s => s.id)")
    assert sections == [
        "head",
        "switch",
        "headline",
        "certificate",
        "costs",
        "frontier",
        "error",
        "try-another",
        "sensitivities",
        "bits",
        "plan",
        "unsupported",
        "settings",
    ]
    assert len(trace(page, "frontier", "best predicted")["x"]) > 10
    assert page.title().startswith(document["name"])


def test_the_stage_follows_the_job(visit, database, document):
    job = begin(database, document, 96, "stages")
    page = visit(f"/jobs/{job}")
    page.get_by_role("heading", name="Measuring sensitivities").wait_for()
    with database.write() as session:
        session.get_one(Job, job).stage = Stage.SOLVE
    page.get_by_role("heading", name="Solving").wait_for()
    assert page.locator(".steps [aria-current]").text_content() == "Solve"


def test_a_job_that_estimates_goes_through_one_more_stage_and_may_measure_again(visit, database, document):
    job = begin(database, document, 96, "estimates")

    def enter(stage):
        with database.write() as session:
            row = session.get_one(Job, job)
            row.stage, row.request = stage, row.request | {"probes": 4, "regret": None}

    enter(Stage.PROBE)
    page = visit(f"/jobs/{job}")
    shown = page.locator(".steps [aria-current]")
    for stage, heading, step in (
        (Stage.PROBE, "Estimating sensitivities", "Estimate"),
        (Stage.SOLVE, "Solving", "Solve"),
        (Stage.MEASURE, "Measuring sensitivities", "Measure"),
        (Stage.SOLVE, "Solving", "Solve"),
    ):
        enter(stage)
        page.get_by_role("heading", name=heading).wait_for()
        assert shown.text_content() == step
    assert page.locator(".steps li").all_text_contents() == ["Estimate", "Measure", "Solve", "Verify"]


def test_steps_around_plans_are_told_as_they_go(visit, database, document):
    job = begin(database, document, 96, "around")
    budget = document["settings"]["budgets"][0]

    def finish_part(place):
        with database.write() as session:
            session.get_one(Task, f"tsk_around_{place}").state = TaskState.DONE

    with database.write() as session:
        row = session.get_one(Job, job)
        row.stage, row.request = Stage.VERIFY, row.request | {"refine_rounds": 3}
        for place in range(3):
            task = Task(id=f"tsk_around_{place}", kind=TaskKind.REFINE, job_id=job, state=TaskState.RUNNING)
            session.add(task)
            session.flush()
            part = TrialPart(job_id=job, ordinal=0, number=0, kind=PartKind.PROBE, place=place)
            part.task_id, part.work = task.id, 5.0
            session.add(part)
    page = visit(f"/jobs/{job}")
    page.get_by_role("heading", name="Looking around the plans").wait_for()
    assert page.locator(".steps [aria-current]").text_content() == "Refine"
    page.get_by_text(f"0 of 3 parts: step 1 around the plan of {budget}, 0 of 3 parts").wait_for()
    finish_part(1)
    page.get_by_text(f"1 of 3 parts: step 1 around the plan of {budget}, 1 of 3 parts").wait_for()


def test_cancelling_asks_first_and_then_cancels(visit, database, document):
    job = begin(database, document, 12, "cancel")
    page = visit(f"/jobs/{job}")
    page.get_by_role("button", name="Cancel job").click()
    dialog = page.get_by_role("dialog", name="Cancel this job?")
    assert dialog.get_by_role("button", name="Keep running").evaluate("b => b === document.activeElement")
    dialog.get_by_role("button", name="Keep running").click()
    assert not dialog.is_visible()
    with database.read() as session:
        assert session.get_one(Job, job).state is JobState.RUNNING
    page.get_by_role("button", name="Cancel job").click()
    dialog.get_by_role("button", name="Cancel job").click()
    page.get_by_text("This job was cancelled.").wait_for()
    assert page.locator("main").get_attribute("data-events") is None
    with database.read() as session:
        assert session.get_one(Job, job).state is JobState.CANCELLED


def test_rounds_of_measuring_are_numbered(visit, database, document):
    job = begin(database, document, 0, "rounds")
    with database.write() as session:
        row = session.get_one(Job, job)
        row.request = row.request | {"regret": 0.02, "blocks": 1}
        session.add(Task(id="tsk_rounds", kind=TaskKind.SOLVE, job_id=job, state=TaskState.DONE))
    page = visit(f"/jobs/{job}")
    page.get_by_text("0 of 96 entries: round 2").wait_for()


def test_cancelling_a_job_that_has_ended_meanwhile_tells_so(visit, database, document):
    job = begin(database, document, 12, "ended")
    page = visit(f"/jobs/{job}", expected=r"409 \(Conflict\)|ERR_FAILED", blocked="**/events")
    page.get_by_role("button", name="Cancel job").click()
    with database.write() as session:
        session.get_one(Job, job).state = JobState.FAILED
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("alert").get_by_text("is failed already").wait_for()


def test_another_budget_is_answered_in_place(visit, database, document):
    with database.write() as session:
        job = rows.store(session, document, unique="budget").id
    page = visit(f"/jobs/{job}", expected=r"409 \(Conflict\)|422")
    page.evaluate("window.sameDocument = true")
    slider = page.get_by_label("Average bits per weight")
    budget = f"{float(slider.input_value()) + 0.5:.2f} bits"
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.get_by_role("textbox", name="Budget").input_value() == budget
    reading = page.locator("#budget-reading").text_content()
    page.get_by_role("button", name="Solve").click()
    page.locator(".try output", has_text="Proven optimal.").wait_for()
    row = page.locator("#tried tbody tr")
    assert row.get_by_role("link").text_content() == budget
    with database.read() as session:
        plan = session.query(Plan).filter_by(job_id=job, role="adhoc").one()
    # What the slider told is what the search then finds.
    assert reading == f"{budget} on average: predicted {number(plan.objective)} nats, {size(plan.size_bits)}"
    assert trace(page, "frontier", "tried, predicted")["y"] == [plan.objective]
    assert page.evaluate("window.sameDocument")
    page.get_by_role("textbox", name="Budget").fill("1 bits")
    page.keyboard.press("Enter")
    alert = page.locator("#try-another [role=alert]")
    alert.get_by_text("the smallest possible plan takes").wait_for()
    assert page.locator(".try output").text_content() == ""
    page.get_by_role("textbox", name="Budget").fill("four")
    page.keyboard.press("Enter")
    alert.get_by_text("four").wait_for()
    page.get_by_role("textbox", name="Budget").fill("150 kB")
    page.get_by_role("button", name="Solve").click()
    row.nth(1).wait_for()
    assert not alert.is_visible()
    row.get_by_role("link", name=budget).click()
    page.get_by_role("heading", name=f"Plan: {budget}").wait_for()
    assert sum(len(bars["x"]) for bars in figure(page, "bits")["data"]) == len(document["units"])


def test_the_list_renews_itself(visit, database, document):
    job = begin(database, document, 10, "listed")
    page = visit("/")
    row = page.locator("tr", has=page.locator(f'a[href="/jobs/{job}"]'))
    assert row.locator(".state").text_content() == "Running"
    with database.write() as session:
        session.get_one(Job, job).state = JobState.CANCELLED
    row.locator(".state", has_text="Cancelled").wait_for()


def test_downloads(visit, done):
    page = visit(f"/jobs/{done}")
    with page.expect_download() as report:
        page.get_by_role("link", name="Save report").click()
    assert report.value.suggested_filename == f"bitwright-efficientnet-lite0.pt2-{done}.html"
    assert report.value.path().read_text("utf-8").startswith("<!doctype html>")
    with page.expect_download() as table:
        page.get_by_role("link", name="CSV").click()
    assert table.value.path().read_text("utf-8").count("\n") == 97
    with page.expect_download() as result:
        page.get_by_role("link", name="JSON").click()
    assert result.value.suggested_filename.endswith(".json")


def test_hostile_names_run_nothing(visit, database, document):
    hostile = "<img src=x onerror='window.pwned=1'><a href='javascript:window.pwned=2'>x</a><script>window.pwned=3</script>"
    changed = samples.renamed(document, document["units"][8]["name"], hostile)
    changed["name"] = changed["model"]["name"] = changed["calibration"]["name"] = hostile
    changed["settings"] |= {"pins": {hostile: 4}}
    with database.write() as session:
        job = rows.store(session, changed, unique="hostile")
        model = job.model_id
    page = visit(f"/jobs/{job.id}")
    figure(page, "heat-map")
    cell = page.locator('[data-figure="heat-map"] .nsewdrag').first
    cell.scroll_into_view_if_needed()
    box = cell.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 8.5 / 16, box["y"] + box["height"] / 2)
    hover = page.locator('[data-figure="heat-map"] .hoverlayer .hovertext').first
    hover.wait_for()
    assert "<img" in hover.text_content()
    assert page.locator("svg a, main img, main script").count() == 0
    for path in ("/", "/models", f"/models/{model}"):
        page.goto(page.url[: page.url.index("/", 8)] + path)
        assert page.get_by_text(hostile).first.is_visible()
    assert page.evaluate("window.pwned") is None
