"""The pages as people with different screens, eyes, hands and habits meet them; and the saved report, offline."""

from itertools import pairwise

import pytest

from app.db import get_database
from app.models import Plan
from app.report import render_report
from app.settings import Settings
from tests.app.dashboard import rows, samples
from tests.app.dashboard.browsing import Visit, chromium, serving_dashboard

pytestmark = pytest.mark.browser

DARK_TEXT, LIGHT_TEXT = "#4a5261", "#a3adbb"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(data_dir=tmp_path_factory.mktemp("design"))


@pytest.fixture(scope="module")
def origin(settings):
    with serving_dashboard(settings) as url:
        yield url


@pytest.fixture(scope="module")
def paths(settings, origin):
    """One of each page."""
    document = samples.result_document()
    with get_database(settings.resolved_database_url).write() as session:
        done = rows.store(session, document)
        running = rows.store(session, samples.running(document, 30), unique="running")
        large = rows.store(session, samples.result_document(300), unique="large")
        plan = session.query(Plan).filter_by(job_id=done.id, role="requested").first()
        return {
            "jobs": "/",
            "job": f"/jobs/{done.id}",
            "running": f"/jobs/{running.id}",
            "large": f"/jobs/{large.id}",
            "plan": f"/plans/{plan.id}",
            "models": "/models",
            "model": f"/models/{done.model_id}",
        }


@pytest.fixture
def visit(browser, origin):
    visits = []

    def opened(path, **options):
        visits.append(Visit(browser, origin, **options))
        return visits[-1].open(path)

    yield opened
    for one in visits:
        one.close()
        assert one.complaints == []
        assert [r for r in one.requests if not r.startswith((origin + "/", "file:"))] == []


def drawn(page, name):
    page.locator(f'[data-figure="{name}"] .main-svg').first.wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_no_page_is_wider_than_the_screen(visit, paths, width, scheme):
    page = visit("/", color_scheme=scheme, viewport={"width": width, "height": 800})
    for path in paths.values():
        page.goto(page.url[: page.url.index("/", 8)] + path)
        if "/jobs/" in path:
            drawn(page, "heat-map")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_dark_pages_are_dark_and_figures_follow(visit, paths):
    page = visit(paths["job"], color_scheme="light")
    drawn(page, "frontier")
    font = "() => document.querySelector('[data-figure=frontier]')._fullLayout.font.color"
    shade = "() => getComputedStyle(document.body).backgroundColor"
    assert (page.evaluate(font), page.evaluate(shade)) == (DARK_TEXT, "rgb(245, 246, 248)")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => ({font})() === '{LIGHT_TEXT}'")
    assert page.evaluate(shade) == "rgb(13, 17, 23)"


def test_the_keyboard_reaches_everything_in_reading_order(visit, paths):
    page = visit(paths["job"])
    drawn(page, "costs")
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "(document.activeElement.innerText || document.activeElement.ariaLabel || '').trim()"
            )
        )
    assert order == [
        "Skip to content",
        "Bitwright",
        "Jobs",
        "Models",
        "Jobs",
        "JSON",
        "CSV",
        "Save report",
        "efficientnet-lite0.pt2",
        "4 bits",
        "3 bits",
        order[-1],
    ]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_skip_link_leads_to_the_content(visit, paths):
    page = visit(paths["job"])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")


@pytest.mark.parametrize("name", ["jobs", "job", "running", "plan", "models", "model"])
def test_pages_have_landmarks_headings_and_names(visit, paths, name):
    page = visit(paths[name])
    found = page.evaluate(
        """() => {
        const all = (query) => [...document.querySelectorAll(query)];
        const named = (e) => e.ariaLabel || e.getAttribute('aria-labelledby') || e.innerText?.trim();
        return {
          language: document.documentElement.lang,
          h1: all('h1').length, main: all('main').length, banner: all('body > header').length,
          headings: all('h1, h2, h3').map((h) => Number(h.tagName[1])),
          ids: all('[id]').map((e) => e.id),
          dangling: all('[aria-labelledby], [aria-describedby]').flatMap((e) =>
            `${e.getAttribute('aria-labelledby') ?? ''} ${e.getAttribute('aria-describedby') ?? ''}`.split(' '))
            .filter((id) => id && !document.getElementById(id)),
          unnamed: all('button, a, nav, [role=region], progress').filter((e) => !named(e) && !e.closest('.js-plotly-plot')).map((e) => e.outerHTML),
          unlabelled: all('input').filter((e) => !e.labels.length).map((e) => e.outerHTML),
          columns: all('thead th').filter((e) => e.scope !== 'col').length,
          rows: all('tbody tr').filter((e) => e.querySelector('th')?.scope !== 'row').length,
          current: all('nav [aria-current=page]').length,
        }; }"""
    )
    assert found["language"] == "en"
    assert (found["h1"], found["main"], found["banner"]) == (1, 1, 1)
    assert found["headings"][0] == 1
    assert all(b - a <= 1 for a, b in pairwise(found["headings"]))
    assert len(found["ids"]) == len(set(found["ids"]))
    for empty in ("dangling", "unnamed", "unlabelled"):
        assert found[empty] == []
    assert (found["columns"], found["rows"]) == (0, 0)
    assert found["current"] >= 1


def test_tables_can_be_read_without_scripts(visit, paths):
    page = visit(paths["job"], java_script_enabled=False)
    assert page.get_by_text("Proven optimal.").first.is_visible()
    assert page.get_by_role("row", name="uniform 8 bits").is_visible()
    assert "This figure is drawn by a script" in page.locator("noscript").first.inner_text()
    page.get_by_text("The plan, tensor by tensor").click()
    assert page.get_by_role("row", name="_fc.weight").is_visible()


def test_a_running_jobs_page_says_how_far_it_is_without_scripts(visit, paths):
    page = visit(paths["running"], java_script_enabled=False)
    assert page.get_by_text("30 of 96 entries").is_visible()


def test_three_hundred_tensors_stay_readable(visit, paths):
    page = visit(paths["large"])
    for name in ("heat-map", "bits"):
        drawn(page, name)
        labels = page.evaluate(
            """name => [...document.querySelectorAll(`[data-figure="${name}"] .xaxislayer-above .xtick`)]
            .map((t) => t.getBoundingClientRect()).map((r) => r.right).sort((a, b) => a - b)""",
            name,
        )
        gaps = [b - a for a, b in pairwise(labels)]
        assert 20 < len(labels) < 120
        assert min(gaps) > 8  # two lines of 10 px at an angle of 60 degrees do not touch
    assert page.evaluate("document.querySelector('[data-figure=heat-map]').data[0].x.length") == 300


def test_figures_keep_their_height_when_the_window_changes(visit, paths):
    page = visit(paths["job"])
    drawn(page, "costs")
    sizes = """() => [...document.querySelectorAll('[data-figure]')].map((box) => {
        const svg = box.querySelector('.main-svg').getBoundingClientRect();
        return [box.dataset.figure, Math.round(svg.height), Math.round(box.offsetHeight), Math.round(svg.width)]; })"""
    before = page.evaluate(sizes)
    page.set_viewport_size({"width": 900, "height": 700})
    page.wait_for_function(
        "(old) => document.querySelector('[data-figure=bits] .main-svg').clientWidth < old",
        arg=next(row[3] for row in before if row[0] == "bits"),
    )
    after = page.evaluate(sizes)
    assert [row[:2] for row in after] == [row[:2] for row in before]
    assert all(svg == box for _, svg, box, _ in after)


def test_the_policy_stops_what_escaping_would_miss(visit, paths):
    page = visit(paths["jobs"], expected="Content Security Policy|policy: |404")
    page.evaluate(
        """() => { document.body.insertAdjacentHTML('beforeend', '<img src="/x" onerror="window.pwned = 1">');
        const script = document.createElement('script'); script.textContent = 'window.pwned = 2';
        document.body.append(script);
        const style = document.createElement('style'); style.textContent = 'body { display: none }';
        document.head.append(style); }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None
    assert page.locator("body").is_visible()


def test_the_page_that_was_not_found(visit, paths):
    page = visit("/jobs/job_nothing", expected="404")
    assert page.get_by_role("heading", name="Not found").is_visible()
    page.get_by_role("link", name="Jobs").last.click()
    page.get_by_role("heading", name="Jobs").wait_for()


def test_the_first_command_can_be_copied(visit, browser, tmp_path):
    with serving_dashboard(Settings(data_dir=tmp_path)) as url:
        one = Visit(browser, url, permissions=["clipboard-read", "clipboard-write"])
        page = one.open("/")
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        one.close()
    assert (
        copied
        == f'bitwright submit MODEL.pt2 --calibration DATA.safetensors --budget "4 bits" --server {url}'
    )
    assert one.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_saved_report_is_drawn_offline(visit, tmp_path, scheme):
    file = tmp_path / "report.html"
    file.write_text(render_report(samples.result_document()), encoding="utf-8")
    page = visit(file.as_uri(), offline=True, color_scheme=scheme)
    for name in ("heat-map", "frontier", "bits", "costs"):
        drawn(page, name)
    colour = page.evaluate("() => document.querySelector('[data-figure=bits]')._fullLayout.font.color")
    assert colour == (DARK_TEXT if scheme == "light" else LIGHT_TEXT)
    assert page.get_by_text("Proven optimal.").first.is_visible()
    layer = page.locator('[data-figure="frontier"] .main-svg').nth(1)
    assert (
        layer.evaluate("s => getComputedStyle(s).position") == "absolute"
    )  # the library's own style applies


def test_a_report_with_hostile_names_runs_nothing(visit, tmp_path):
    hostile = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'>"
    document = samples.renamed(samples.result_document(), "_fc.weight", hostile)
    document["model"]["name"] = document["plans"][0]["name"] = hostile
    file = tmp_path / "report.html"
    file.write_text(render_report(document), encoding="utf-8")
    page = visit(file.as_uri())
    drawn(page, "heat-map")
    assert page.get_by_text(hostile).first.is_visible()
    assert page.evaluate("window.pwned") is None
