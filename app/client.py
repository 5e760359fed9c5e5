"""A client for the service's HTTP interface.

    >>> from app.client import Client
    >>> with Client("http://127.0.0.1:8400") as client:
    ...     model = client.upload_model("model.pt2")
    ...     data = client.upload_dataset("calibration.safetensors")
    ...     job = client.submit({"model": model["id"], "dataset": data["id"], "budgets": ["4 bits"]})
    ...     for update in client.watch(job["id"]):
    ...         print(update.state, update.progress)
    ...     result = client.result(job["id"])

Needs httpx only. Every refusal is raised as `ApiProblem` with the service's problem document (RFC 9457).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from app.client_errors import ApiProblem, ClientError, Document, Unreachable
from workers.intake.packing import packed

__all__ = ["ApiProblem", "Client", "ClientError", "JobUpdate", "Unreachable"]

Progress = Callable[[int], None]
"""Called with the bytes sent so far."""

DEFAULT_URL = "http://127.0.0.1:8400"
FINAL_STATES = frozenset({"done", "failed", "cancelled"})
CHUNK_BYTES = 1 << 20
PATIENCE_S = 60.0
"""How long `Client.watch` goes on trying while the service cannot be reached, in seconds."""
_SHORTEST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class JobUpdate:
    """How a job stands.

    Args:
        state: queued, running, done, failed or cancelled.
        progress: stage, done, total, unit, fraction, eta_seconds, elapsed_seconds; ``None`` before it begins.
    """

    state: str
    progress: Document | None

    @property
    def final(self) -> bool:
        """Nothing happens to the job any more."""
        return self.state in FINAL_STATES


class Client:
    """One connection pool to one service.

    Args:
        base_url: Where the service is, with or without ``/v1``.
        timeout_s: For connecting and for each wait for data, in seconds.
        transport: For tests.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        url = f"{self.base_url}/v1/"
        try:
            self._http = httpx.Client(
                base_url=url, timeout=timeout_s, transport=transport, follow_redirects=True
            )
        except httpx.InvalidURL as error:
            raise Unreachable(f"{self.base_url!r} is no address: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upload_model(
        self, path: str | os.PathLike[str], *, name: str | None = None, progress: Progress | None = None
    ) -> Document:
        """Upload a model, streamed, its SHA-256 with it; a file the service has is not stored twice.

        Args:
            path: A ``.pt2`` file, or a Hugging Face folder, which is packed first.
            name: What to call it; the file's or folder's name if not given.
            progress: Called with the bytes sent so far.

        Returns:
            The model document, inspected (``state``: ready); a large model may take a while.

        Raises:
            ApiProblem: The file was refused.
            ModelRefused: The folder is not a model.
        """
        with packed(Path(path)) as file:
            document = self._upload("models", file, name or Path(path).name, progress)
        pause_s = _SHORTEST_PAUSE_S
        while document["state"] == "inspecting":
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            document = self.model(document["id"])
        if document.get("problem"):
            raise ApiProblem(document["problem"])
        return document

    def upload_dataset(
        self, path: str | os.PathLike[str], *, name: str | None = None, progress: Progress | None = None
    ) -> Document:
        """Upload a safetensors file; as `upload_model`."""
        return self._upload("datasets", Path(path), name, progress)

    def model(self, model_id: str) -> Document:
        """A model with its units."""
        return self._get(f"models/{_segment(model_id)}")

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Document:
        """Create a job.

        Args:
            request: model, dataset, budgets and what else `POST /v1/jobs` takes.
            idempotency_key: The same key with the same request gives the same job.

        Returns:
            The job document.

        Raises:
            ApiProblem: The request was refused.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _document(self._send("POST", "jobs", json=dict(request), headers=headers))

    def jobs(self, *, state: str | None = None, limit: int | None = None) -> list[Document]:
        """The newest jobs, newest first.

        Args:
            state: Only those in this state.
            limit: At most so many; the service's page size if not given.
        """
        wanted = {"state": state, "limit": limit}
        params = {key: value for key, value in wanted.items() if value is not None}
        page = _document(self._send("GET", "jobs", params=params))
        items: list[Document] = page["items"]
        return items

    def job(self, job_id: str, *, wait_s: float | None = None) -> Document:
        """A job as it stands.

        Args:
            job_id: Which.
            wait_s: Answer when it has ended, or after so many seconds.
        """
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s:g}"}
        timeout_s = self._timeout_s + (wait_s or 0)
        return _document(self._send("GET", f"jobs/{_segment(job_id)}", headers=headers, timeout=timeout_s))

    def cancel(self, job_id: str) -> Document:
        """Stop a job; what it has measured is kept."""
        return _document(self._send("POST", f"jobs/{_segment(job_id)}/cancel"))

    def result(self, job_id: str) -> Document:
        """The result document; while the job runs, with what is there so far."""
        return self._get(f"jobs/{_segment(job_id)}/result")

    def sensitivities(self, job_id: str) -> Document:
        """The measured sensitivities."""
        return self._get(f"jobs/{_segment(job_id)}/sensitivities")

    def frontier(self, job_id: str) -> Document:
        """The best predicted cost at every size."""
        return self._get(f"jobs/{_segment(job_id)}/frontier")

    def create_plan(self, job_id: str, request: Mapping[str, Any]) -> Document:
        """A plan for another budget, pin or tie, on the stored costs.

        Args:
            job_id: Whose measurements.
            request: budget and what else `POST /v1/jobs/{id}/plans` takes.
        """
        return _document(self._send("POST", f"jobs/{_segment(job_id)}/plans", json=dict(request)))

    def plan(self, plan_id: str) -> Document:
        """A plan."""
        return self._get(f"plans/{_segment(plan_id)}")

    def watch(self, job_id: str, *, patience_s: float = PATIENCE_S) -> Iterator[JobUpdate]:
        """Follow a job until it ends.

        Server-sent events; when the stream breaks it is opened again, and where streams do not come through (some
        proxies hold them back) the job is polled.

        Args:
            job_id: Which.
            patience_s: How long to go on trying while the service cannot be reached.

        Yields:
            Each change; the last one is final.

        Raises:
            ApiProblem: There is no such job.
            Unreachable: The service could not be reached for ``patience_s``.
        """
        deadline, pause_s = time.monotonic() + patience_s, _SHORTEST_PAUSE_S
        last: JobUpdate | None = None
        while last is None or not last.final:
            try:
                for update in self._news(job_id):
                    deadline = time.monotonic() + patience_s
                    if update != last:
                        last = update
                        yield update
            except (Unreachable, ApiProblem) as error:
                refused = isinstance(error, ApiProblem) and error.status < httpx.codes.INTERNAL_SERVER_ERROR
                if refused or time.monotonic() >= deadline:
                    raise
            if last is None or not last.final:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _news(self, job_id: str) -> Iterator[JobUpdate]:
        """The updates of one event stream, then the job as it stands."""
        final = False
        for update in self._events(job_id):
            final = update.final
            yield update
        if not final:
            yield self._update(self.job(job_id))

    def _events(self, job_id: str) -> Iterator[JobUpdate]:
        """The updates of one event stream, until it ends or breaks."""
        try:
            timeout = httpx.Timeout(self._timeout_s, read=2 * self._timeout_s)
            accept = {"Accept": "text/event-stream"}
            with self._http.stream(
                "GET", f"jobs/{_segment(job_id)}/events", headers=accept, timeout=timeout
            ) as response:
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    return
                for data in _server_sent(response.iter_lines()):
                    yield self._update(data)
        except httpx.HTTPError:
            return

    @staticmethod
    def _update(document: Document) -> JobUpdate:
        return JobUpdate(state=str(document["state"]), progress=document.get("progress"))

    def _upload(self, collection: str, path: Path, name: str | None, progress: Progress | None) -> Document:
        size = path.stat().st_size
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "X-Content-SHA256": _sha256(path),
        }
        with path.open("rb") as file:
            response = self._send(
                "POST",
                collection,
                params={"name": name or path.name},
                content=_chunks(file.read, progress),
                headers=headers,
                timeout=httpx.Timeout(self._timeout_s, read=None),  # a large model takes time to be inspected
            )
        return _document(response)

    def _get(self, path: str) -> Document:
        return _document(self._send("GET", path))

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise Unreachable(f"no answer from {self.base_url}: {error or type(error).__name__}") from error
        if response.is_error:
            raise ApiProblem(_document_of(response))
        return response


def _segment(identifier: str) -> str:
    """An id as one segment of a path, whatever it holds.

    Raises:
        ApiProblem: It is empty (a shell variable that was not set) or one that paths drop; it would name the collection.
    """
    if identifier in ("", ".", ".."):
        problem = {"type": "urn:bitwright:problem:not-found", "title": "Not found", "status": 404}
        raise ApiProblem(
            {**problem, "detail": f"{identifier!r} is no id", "field": "id", "value": identifier}
        )
    return quote(identifier, safe="")


def _chunks(read: Callable[[int], bytes], progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    while chunk := read(CHUNK_BYTES):
        yield chunk
        sent += len(chunk)
        if progress is not None:
            progress(sent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _server_sent(lines: Iterator[str]) -> Iterator[Document]:
    """The data of each event of a stream (the JSON subset of the HTML standard's event streams)."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield json.loads("\n".join(data))
            data = []


def _document(response: httpx.Response) -> Document:
    try:
        document = response.json()
    except ValueError as error:
        raise Unreachable(
            f"{response.url} answered {response.status_code} with something that is not JSON"
        ) from error
    if not isinstance(document, dict):
        raise Unreachable(f"{response.url} answered with JSON that is not an object")
    return document


def _document_of(response: httpx.Response) -> Document:
    """The problem document of a refusal; made up from the status line where a proxy answered instead."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and "title" in document:
        return document
    return {
        "type": "about:blank",
        "title": response.reason_phrase or "Error",
        "status": response.status_code,
        "detail": f"{response.request.method} {response.url} answered {response.status_code}",
    }
