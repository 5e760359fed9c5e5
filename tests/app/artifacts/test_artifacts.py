"""The store: a file is there whole or not at all."""

import asyncio
import base64
import errno
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import artifacts
from app.artifacts import ArtifactStore, Limits, announced_sha256, receive, reference
from app.errors import (
    ChecksumMismatch,
    InvalidRequest,
    LocationRefused,
    StorageFull,
    TooLarge,
    TruncatedUpload,
)

DATA = bytes(range(256)) * 20
HASH = sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def files(store):
    return sorted(str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file())


def put(store, data=DATA, limits=None):
    with store.incoming(limits or Limits(max_bytes=1 << 20)) as incoming:
        incoming.write(data)
        incoming.finish()
        return store.keep(incoming)


def test_a_file_is_found_by_its_content(store):
    assert put(store) is True
    assert store.exists(HASH)
    assert store.path(HASH).read_bytes() == DATA
    assert files(store) == [f"{HASH[:2]}/{HASH}"]


def test_the_same_content_is_stored_once(store):
    put(store)
    inode = store.path(HASH).stat().st_ino
    assert put(store) is False
    assert store.path(HASH).stat().st_ino == inode
    assert len(files(store)) == 1


def test_what_is_not_kept_leaves_nothing(store):
    with store.incoming(Limits(max_bytes=1 << 20)) as incoming:
        incoming.write(DATA)
        incoming.finish()
    assert files(store) == []


def test_an_error_on_the_way_leaves_nothing(store):
    def interrupted():
        with store.incoming(Limits(max_bytes=1 << 20)) as incoming:
            incoming.write(DATA)
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        interrupted()
    assert files(store) == []


def test_too_much_is_refused_as_soon_as_it_shows(store):
    with pytest.raises(TooLarge) as caught, store.incoming(Limits(max_bytes=100, size_bytes=101)):
        pytest.fail("an announced size that is too large needs no upload")
    assert caught.value.extra == {"maximum_bytes": 100}
    with store.incoming(Limits(max_bytes=100)) as incoming:
        incoming.write(b"x" * 100)
        with pytest.raises(TooLarge):
            incoming.write(b"x")
    assert files(store) == []


@pytest.mark.parametrize("announced", [len(DATA) - 1, len(DATA) + 1])
def test_another_length_than_announced_is_refused(store, announced):
    with pytest.raises(TruncatedUpload) as caught:
        put(store, limits=Limits(max_bytes=1 << 20, size_bytes=announced))
    assert (caught.value.value, caught.value.allowed) == (len(DATA), announced)
    assert files(store) == []


def test_another_hash_than_announced_is_refused(store):
    with pytest.raises(ChecksumMismatch) as caught:
        put(store, limits=Limits(max_bytes=1 << 20, sha256="0" * 64))
    assert (caught.value.value, caught.value.allowed) == ("0" * 64, HASH)
    assert files(store) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_nothing(store, monkeypatch, code, call):
    def full(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    if call == "write":
        # A real file that has no room for a single byte.
        real = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda self, mode="r", **kw: _Full(self, mode, code) if mode == "xb" else real(self, mode, **kw),
        )
    elif call == "fsync":
        monkeypatch.setattr(artifacts.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageFull):
        put(store)
    monkeypatch.undo()
    assert files(store) == []
    assert put(store), "the store works again when there is room"


class _Full(artifacts.FileIO):
    def __init__(self, path, mode, code):
        super().__init__(path, mode)
        self._code = code

    def write(self, _data):
        raise OSError(self._code, os.strerror(self._code))


def test_other_failures_of_the_disk_are_no_full_disk(store, monkeypatch):
    def broken(*_args):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(artifacts.os, "fsync", broken)
    with pytest.raises(OSError, match="I/O error"):
        put(store)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=5000), max_size=20))
def test_a_stream_arrives_whatever_its_chunks(tmp_path_factory, chunks):
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    whole = b"".join(chunks)

    async def stream():
        for chunk in chunks:
            yield chunk

    block, artifacts._BLOCK = artifacts._BLOCK, 4096
    try:
        with store.incoming(Limits(max_bytes=1 << 20, size_bytes=len(whole))) as incoming:
            asyncio.run(receive(incoming, stream()))
            store.keep(incoming)
    finally:
        artifacts._BLOCK = block
    assert store.path(sha256(whole).hexdigest()).read_bytes() == whole


_WRITER = """
import sys, time
from pathlib import Path
from app.artifacts import ArtifactStore, Limits
with ArtifactStore(Path(sys.argv[1])).incoming(Limits(max_bytes=1000)) as incoming:
    incoming.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(store):
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(store.root)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        assert store.sweep() == 0
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert len(files(store)) == 2, "a killed process cleans nothing up"
        assert store.sweep() == 1
        assert len(files(store)) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


def test_a_file_that_was_swept_before_it_was_locked_is_made_anew(store, monkeypatch):
    real, swept = artifacts.fcntl.flock, []

    def late(file, how):
        if not swept:
            swept.append(Path(file.name))
            swept[0].unlink()
        real(file, how)

    monkeypatch.setattr(artifacts.fcntl, "flock", late)
    assert put(store)
    assert swept
    assert files(store) == [f"{HASH[:2]}/{HASH}"]


@pytest.mark.parametrize("text", ["", "../x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_only_hashes_lead_to_files(store, text):
    with pytest.raises(InvalidRequest):
        store.path(text)


class TestReference:
    """Files of the service's machine."""

    @pytest.fixture
    def allowed(self, tmp_path):
        directory = tmp_path / "allowed"
        directory.mkdir()
        (directory / "model").write_bytes(DATA)
        return directory

    def test_a_file_inside_is_hashed_where_it_lies(self, allowed):
        (allowed / "link").symlink_to("model")
        found = reference(allowed / "link", [allowed], Limits(max_bytes=1 << 20, sha256=HASH))
        assert (found.path, found.sha256, found.size_bytes) == (allowed / "model", HASH, len(DATA))

    def test_an_allowed_directory_may_itself_be_a_link(self, allowed, tmp_path):
        (tmp_path / "alias").symlink_to(allowed)
        alias = tmp_path / "alias"
        assert reference(alias / "model", [alias], Limits(max_bytes=1 << 20)).path == allowed / "model"

    def test_whatever_is_not_a_readable_file_inside_is_refused_alike(self, allowed, tmp_path):
        outside = tmp_path / "secret"
        outside.write_bytes(DATA)
        (tmp_path / "allowed-not").mkdir()
        (tmp_path / "allowed-not" / "model").write_bytes(DATA)
        (allowed / "escape").symlink_to(outside)
        (allowed / "loop").symlink_to("loop")
        (allowed / "directory").mkdir()
        os.mkfifo(allowed / "pipe")
        refused = [
            outside,
            allowed / "escape",
            allowed / ".." / "secret",
            tmp_path / "allowed-not" / "model",
            allowed / "missing",
            allowed / "loop",
            allowed / "directory",
            allowed / "pipe",
            allowed,
            Path("model"),
            Path("/dev/zero"),
            Path(f"{allowed}/a\x00b"),
            allowed / ("x" * 5000),
        ]
        messages = set()
        for path in refused:
            with pytest.raises(LocationRefused) as caught:
                reference(path, [allowed], Limits(max_bytes=1 << 20))
            messages.add(caught.value.message.replace(repr(str(path)), "…"))
        assert len(messages) == 1, "the answer does not tell what exists elsewhere"

    def test_nothing_is_allowed_by_default(self, allowed):
        with pytest.raises(LocationRefused):
            reference(allowed / "model", [], Limits(max_bytes=1 << 20))

    def test_limits_hold(self, allowed):
        with pytest.raises(TooLarge):
            reference(allowed / "model", [allowed], Limits(max_bytes=len(DATA) - 1))
        with pytest.raises(ChecksumMismatch):
            reference(allowed / "model", [allowed], Limits(max_bytes=1 << 20, sha256="0" * 64))

    def test_a_link_that_is_turned_meanwhile_is_noticed(self, allowed, tmp_path, monkeypatch):
        outside = tmp_path / "secret"
        outside.write_bytes(DATA)
        link = allowed / "link"
        link.symlink_to("model")
        real = os.open

        def turned(path, flags, *more):
            if Path(path) == link:
                link.unlink()
                link.symlink_to(outside)
                descriptor = real(path, flags, *more)
                link.unlink()
                link.symlink_to("model")
                return descriptor
            return real(path, flags, *more)

        monkeypatch.setattr(artifacts.os, "open", turned)
        with pytest.raises(LocationRefused):
            reference(link, [allowed], Limits(max_bytes=1 << 20))


DIGEST = f"sha-256=:{base64.b64encode(bytes.fromhex(HASH)).decode()}:"


@pytest.mark.parametrize(
    ("query", "header", "digest", "expected"),
    [
        (None, None, None, None),
        (HASH, None, None, HASH),
        (None, HASH.upper(), None, HASH),
        (None, None, DIGEST, HASH),
        (HASH, HASH, f"md5=:abc:, {DIGEST}", HASH),
        (None, None, "sha-512=:AAAA:", None),
    ],
)
def test_hashes_are_announced_in_three_ways(query, header, digest, expected):
    assert announced_sha256(query, header, digest) == expected


@pytest.mark.parametrize(
    ("query", "header", "digest", "field"),
    [
        ("abc", None, None, "sha256"),
        (None, "x" * 64, None, "X-Content-SHA256"),
        (None, None, "sha-256=:AAAA:", "Content-Digest"),
        (None, None, f"sha-256={HASH}", "Content-Digest"),
        (None, None, "sha-256=:****:", "Content-Digest"),
        (HASH, "0" * 64, None, "sha256"),
    ],
)
def test_a_hash_that_cannot_be_read_is_refused(query, header, digest, field):
    with pytest.raises(InvalidRequest) as caught:
        announced_sha256(query, header, digest)
    assert caught.value.field == field
