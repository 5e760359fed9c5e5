"""The pages over real HTTP, on both databases: what they show, how they fail, which headers they carry."""

import gzip
import re
from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError

from app.dashboard import assets, views
from app.dashboard.rendering import age
from app.kit.ids import new_id
from app.models import Job, JobState, Model, ModelState, Plan, PlanRole, Stage, utc_now
from app.plans import repository as plans
from app.plans import service as plan_service
from app.plans.conclusion import measured_cost
from app.report.policy import PLOTLY_STYLES, page_policy
from app.report.rendering import STATIC
from tests.app.dashboard import samples

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e'


def page(api, path, status=200):
    answer = api.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer


def test_without_jobs_the_list_tells_how_to_submit_one(api):
    text = page(api, "/").text
    assert "bitwright submit MODEL.pt2 --calibration DATA.safetensors --budget &#34;4 bits&#34;" in text
    assert str(api.base_url) in text
    assert 'data-copy="first-job"' in text


def test_the_list_shows_state_budget_progress_and_measured_cost(api, world):
    done = world.done_job(name="first")
    running = world.job(budgets=["4 bits", "3 bits"])
    world.start(running)
    world.measure(running, 5)
    world.job(name="third")
    text = page(api, "/").text
    assert text.index("third") < text.index(running.id) < text.index("first")
    for part in (
        "Done",
        "Running",
        "Queued",
        "4 bits, 3 bits",
        "KL at 4 bits",
        "waiting for a worker",
        "measuring,",
    ):
        assert part in text
    with world.database.read() as session:
        cost = views.jobs_view(session, JobState.DONE, None).rows[0].cost
        assert cost == pytest.approx(
            measured_cost(plan_service.list_plans(session, done, ())[0], "kl"), rel=1e-12
        )
    assert re.search(r'<progress max="1" value="0\.\d+"', text)
    assert 'data-refresh="3"' in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "just now"),
        (42, "42 s ago"),
        (5 * 60 + 20, "5 min ago"),
        (7500, "2 h ago"),
        (3 * 86400 + 9999, "3 d ago"),
    ],
)
def test_ages_are_told_in_one_unit(seconds, text):
    assert age(utc_now() - timedelta(seconds=seconds)).replace("\u2009", " ") == text


def test_the_list_filters_by_state(api, world):
    world.done_job(name="finished")
    world.job(name="waiting")
    text = page(api, "/?state=done").text
    assert "finished" in text
    assert "waiting</a>" not in text
    assert "data-refresh" not in text
    assert "No failed jobs" in page(api, "/?state=failed").text
    assert "waiting</a>" in page(api, "/?state=nonsense").text


def test_the_list_is_paged_by_cursor(api, world):
    model, dataset = world.model(), world.dataset()
    for number in range(views.JOBS_PER_PAGE + 2):
        world.job(model=model.id, dataset=dataset.id, name=f"job number {number}")
    first = page(api, "/").text
    older = re.search(r'rel="next" href="([^"]+)"', first)[1]
    second = page(api, older.replace("&amp;", "&")).text
    names = [re.findall(r"job number (\d+)</a>", text) for text in (first, second)]
    assert [len(n) for n in names] == [views.JOBS_PER_PAGE, 2]
    assert names[0] + names[1] == [str(n) for n in reversed(range(views.JOBS_PER_PAGE + 2))]
    assert 'rel="next"' not in second
    assert ">Newest</a>" in second


def test_a_cursor_that_is_none_is_told_so(api):
    assert "cursor is not one of ours" in page(api, "/?cursor=x", 422).text


def test_a_finished_jobs_page_shows_everything(api, world):
    job = world.done_job(name="my job", budgets=["4 bits", "3 bits"])
    text = page(api, f"/jobs/{job.id}").text
    for part in (
        "my job",
        "Proven optimal",
        "uniform 8 bits",
        "searched",
        "stem.weight",
        "Left in float",
        "not a weight of a product",
        f"/v1/jobs/{job.id}/result",
        f"/v1/jobs/{job.id}/sensitivities?format=csv",
        f"/jobs/{job.id}/report",
        f'action="/v1/jobs/{job.id}/plans"',
        "channel-asymmetric",
    ):
        assert part in text, part
    for figure in ("heat-map", "frontier", "bits", "costs"):
        assert f'data-figure="{figure}"' in text
    assert "data-events" not in text
    assert "Cancel job" not in text


def test_another_budget_of_the_job_can_be_looked_at(api, world):
    job = world.done_job(budgets=["4 bits", "3 bits"])
    first = page(api, f"/jobs/{job.id}").text
    other = re.search(rf'href="(/jobs/{job.id}\?plan=[^"]+)"', first)[1]
    assert "Bits of each weight tensor, 4 bits" in first
    assert "Bits of each weight tensor, 3 bits" in page(api, other).text
    assert "Bits of each weight tensor, 4 bits" in page(api, f"/jobs/{job.id}?plan=pln_unknown").text


def test_a_running_jobs_page_follows_events_and_can_be_cancelled(api, world):
    job = world.job()
    world.start(job)
    world.measure(job, 7)
    text = page(api, f"/jobs/{job.id}").text
    assert f'data-events="/v1/jobs/{job.id}/events"' in text
    assert 'data-state="running measure"' in text
    assert f'action="/v1/jobs/{job.id}/cancel"' in text
    assert "7 of 24 entries" in text
    assert 'data-figure="heat-map"' in text
    assert 'data-figure="frontier"' not in text


def test_a_verifying_jobs_page_shows_plans_that_are_not_measured_yet(api, world):
    job = world.job()
    world.start(job)
    world.measure(job)
    world.solve(job)
    world.start(job, Stage.VERIFY)
    text = page(api, f"/jobs/{job.id}").text
    assert "not measured yet" in text
    assert "Measuring the plans" in text
    assert "0 of 7 plans" in text


def test_a_failed_jobs_page_shows_the_problem(api, world):
    job = world.job()
    with world.database.write() as session:
        row = session.get_one(type(job), job.id)
        row.state = JobState.FAILED
        row.problem = {
            "title": "The measurement failed",
            "detail": "out <b>of</b> memory",
            "field": "memory_bytes",
            "value": 5,
            "allowed": "more",
        }
    text = page(api, f"/jobs/{job.id}").text
    assert "Why it stopped" in text
    assert "out &lt;b&gt;of&lt;/b&gt; memory" in text
    assert "memory_bytes" in text


def test_budgets_tried_later_are_on_the_page(api, world):
    job = world.done_job()
    plan = api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "5 bits"}).json()
    text = page(api, f"/jobs/{job.id}").text
    assert f'data-plan="{plan["id"]}"' in text
    assert 'data-words="Proven optimal.' in text


def test_a_plans_page_shows_its_certificate_and_every_choice(api, world):
    job = world.done_job()
    plan = api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "5 bits"}).json()
    text = page(api, f"/plans/{plan['id']}").text
    assert "Proven optimal." in text
    assert "Tried later" in text
    for unit in plan["choices"]:
        assert unit in text
    baseline = api.get(f"/v1/jobs/{job.id}/plans?role=uniform").json()["items"][0]
    assert "Baseline: the same bit-width in every unit." in page(api, f"/plans/{baseline['id']}").text


def test_a_plan_made_with_interactions_has_a_page_that_does_not_claim_it(api, world):
    job = world.done_job()
    with world.database.write() as session:
        requested = plans.of_job(session, job.id, PlanRole.REQUESTED)[0]
        told = {c.key: getattr(requested, c.key) for c in Plan.__table__.columns}
        other = told | {"id": new_id("pln"), "role": PlanRole.ALTERNATIVE, "spec_sha256": "b" * 64}
        session.add(
            Plan(**other | {"solver": {"backend": "interactions"}, "lower_bound": None, "relative_gap": None})
        )
    text = page(api, f"/plans/{other['id']}").text
    assert "made with interactions" in text
    assert "handed over" not in text


def test_costs_in_the_list_have_the_unit_of_what_was_compared(api, world):
    job = world.done_job()
    with world.database.write() as session:
        stored = session.get_one(Job, job.id)
        stored.request = stored.request | {"metric": "auto"}
    assert "KL at 4 bits" in page(api, "/").text


def test_the_report_is_a_download_that_stands_alone(api, world):
    job = world.done_job(model=world.model(name='a/../b c\u202e"é;.pt2').id)
    answer = page(api, f"/jobs/{job.id}/report")
    assert (
        answer.headers["content-disposition"]
        == f'attachment; filename="bitwright-a-..-b-c-.pt2-{job.id}.html"'
    )
    assert "Proven optimal" in answer.text
    assert 'id="figure-data"' in answer.text


def test_models_and_a_models_page(api, world):
    model = world.model(name="net one")
    world.done_job(model=model.id, name="its job")
    listed = page(api, "/models").text
    assert "net one" in listed
    text = page(api, f"/models/{model.id}").text
    for part in (
        "stem.weight",
        "conv2d",
        "8 \u00d7 3 \u00d7 3 \u00d7 3",
        "9\u2009000",
        "its job",
        "norm.weight",
        "not a weight of a product",
    ):
        assert part in text, part


def test_models_that_are_not_ready(api, world):
    waiting = world.model(state=ModelState.INSPECTING)
    refused = world.model(state=ModelState.REFUSED)
    with world.database.write() as session:
        session.get_one(Model, refused.id).problem = {
            "title": "The model file was refused",
            "detail": "it is a pickle",
        }
    text = page(api, f"/models/{waiting.id}").text
    assert "A worker is reading this model." in text
    assert 'data-refresh="3"' in text
    assert "it is a pickle" in page(api, f"/models/{refused.id}").text
    assert "Refused" in page(api, "/models").text


def test_models_are_paged(api, world):
    for number in range(views.MODELS_PER_PAGE + 1):
        world.model(name=f"net {number:03}")
    first = page(api, "/models").text
    second = page(api, re.search(r'rel="next" href="([^"]+)"', first)[1]).text
    assert re.findall(r"net (\d+)</a>", second) == ["000"]
    assert "No models yet" not in second


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/job_01jd8y0v3k6zq2m4n5p7r8s9ta",
        "/jobs/x",
        "/jobs/job_%00",
        "/plans/pln_01jd8y0v3k6zq2m4n5p7r8s9ta",
        "/plans/%3Cscript%3E",
        "/models/mdl_01jd8y0v3k6zq2m4n5p7r8s9ta",
        "/models/x",
        "/jobs/x/report",
    ],
)
def test_unknown_ids_get_a_page_that_says_so(api, path):
    answer = page(api, path, 404)
    assert "<h1>Not found</h1>" in answer.text
    assert "<script>" not in answer.text
    assert answer.headers["content-security-policy"] == page_policy()


def test_hostile_names_are_escaped_everywhere(api, world):
    unit = {**samples.units(2)[0], "name": HOSTILE, "group_axis": 1, "operator": HOSTILE, "tied": [HOSTILE]}
    model = world.model((unit,), name=HOSTILE)
    job = world.done_job(model=model.id, dataset=world.dataset(name=HOSTILE).id)
    with world.database.write() as session:
        session.get_one(type(job), job.id).name = HOSTILE
    change = plan_service.PlanChange(budget="5 bits", name=HOSTILE)
    plan = plan_service.create_plan(world.database, job.id, change).plan
    for path in (
        "/",
        "/models",
        f"/jobs/{job.id}",
        f"/models/{model.id}",
        f"/plans/{plan.id}",
        f"/jobs/{job.id}/report",
    ):
        text = page(api, path).text
        assert "<script>alert" not in text, path
        assert "<img" not in text, path
        assert "\u202e" not in text, path
        assert "&lt;script&gt;alert(1)" in text, path


def test_pages_carry_a_strict_policy(api):
    headers = page(api, "/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    assert "frame-ancestors 'none'" in policy
    assert len(re.findall("sha256-", policy)) == len(PLOTLY_STYLES)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_static_files_have_addresses_that_browsers_may_keep(api):
    text = page(api, "/models").text
    urls = re.findall(r'(?:href|src)="(/assets/[^"]+)"', text)
    assert {u.rpartition("/")[2] for u in urls} == {"icon.svg", "bitwright.css", "bitwright.js"}
    for url in [*urls, assets.asset_url("plotly.min.js")]:
        answer = api.get(url)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["vary"] == "Accept-Encoding"
    plain = api.get(urls[0], headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == (STATIC / urls[0].rpartition("/")[2]).read_bytes()


def test_static_files_of_another_version_are_not_kept(api):
    answer = api.get("/assets/000000000000/bitwright.css")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpages.py", "%2e%2e/pages.py", "icon.svg/.."])
def test_no_other_file_is_served(api, name):
    assert api.get(f"/assets/x/{name}").status_code == 404


def test_long_pages_and_reports_are_sent_compressed(api, world):
    job = world.done_job()
    for path in (f"/jobs/{job.id}", f"/jobs/{job.id}/report"):
        packed = page(api, path)
        plain = api.get(path, headers={"Accept-Encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
        assert "content-encoding" not in plain.headers
        assert plain.text.endswith("</html>")
        assert packed.text.endswith("</html>")


def test_compressed_files_are_what_they_should_be():
    found = assets.asset("bitwright.js")
    assert gzip.decompress(assets._compressed("bitwright.js")) == found.content
    assert found.version in found.url


def test_a_database_that_is_away_gives_a_page_that_tries_again(api, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OperationalError("SELECT 1", {}, Exception("secret host name"))

    monkeypatch.setattr(views, "jobs_view", fail)
    answer = page(api, "/", 503)
    assert 'data-refresh="5"' in answer.text
    assert "secret" not in answer.text
    assert int(answer.headers["retry-after"]) > 0


def test_the_old_address_of_the_list_leads_to_it(api):
    answer = api.get("/jobs")
    assert answer.status_code == 308
    assert answer.headers["location"] == "/"


def test_pages_are_not_part_of_the_api_description(api):
    paths = api.get("/openapi.json").json()["paths"]
    assert not [p for p in paths if not p.startswith(("/v1", "/healthz", "/readyz", "/metrics"))]
