"""The API over real HTTP on loopback, and rows to begin with (`world`)."""

import random
import shutil
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn

from app.db import Database, get_database
from app.main import create_app
from app.settings import Settings
from tests.app.world import World


@pytest.fixture(scope="session")
def _settings_of(tmp_path_factory):
    """Kind of database -> settings that all tests share: the API is started once for each kind."""
    made = {}

    def settings_of(kind, url):
        if kind not in made:
            base = tmp_path_factory.mktemp(f"service-{kind}")
            (base / "allowed").mkdir()
            made[kind] = Settings(
                data_dir=base / "data",
                database_url=url,
                max_upload_bytes=1 << 20,
                inspect_wait_s=0,
                workers=2,
                allowed_locations=(base / "allowed",),
            )
        return made[kind]

    return settings_of


@pytest.fixture
def settings(database_kind, database_url, _settings_of):
    settings = _settings_of(database_kind, database_url)
    yield settings
    shutil.rmtree(settings.artifacts_dir, ignore_errors=True)
    shutil.rmtree(settings.allowed_locations[0])
    settings.allowed_locations[0].mkdir()


@pytest.fixture
def world(database, settings):
    random.seed(0)
    return World(database, settings)


@pytest.fixture
def make_world():
    """Rows in a database of the test's own."""
    random.seed(0)
    databases = []

    def make(settings):
        databases.append(Database(settings.resolved_database_url))
        return World(databases[-1], settings)

    yield make
    for database in databases:
        database.dispose()


@contextmanager
def serving(app):
    """Run an app on a free port of the loopback interface."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in 20 s"
            time.sleep(0.002)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not end in 60 s"


@pytest.fixture(scope="session")
def _served():
    """Settings -> client of an API that runs until the end of the session."""
    with ExitStack() as stack:
        clients = {}

        def served(settings):
            kind = (settings.resolved_database_url, settings.inspect_wait_s)
            if kind not in clients:
                url = stack.enter_context(serving(create_app(settings, dispatch=False)))
                clients[kind] = stack.enter_context(httpx.Client(base_url=url, timeout=30))
            return clients[kind]

        yield served


@pytest.fixture
def api(settings, _served):
    """An HTTP client of the running API."""
    return _served(settings)


@pytest.fixture
def serve():
    """Run an API with settings of its own: `with serve(settings) as client`."""

    @contextmanager
    def run(settings):
        with (
            serving(create_app(settings, dispatch=False)) as url,
            httpx.Client(base_url=url, timeout=30) as client,
        ):
            yield client
        get_database(settings.resolved_database_url).dispose()

    return run


def assert_problem(response, status, kind, field=None):
    """A problem document, complete; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:bitwright:problem:{kind}", problem
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    if field is not None:
        assert problem["field"] == field, problem
        assert "value" in problem
        assert problem["allowed"], problem
    return problem


@pytest.fixture
def problem():
    return assert_problem
