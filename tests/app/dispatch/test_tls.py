"""Certificates: made once, readable by nobody else, good for loopback and the names given."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from app.dispatch import tls
from app.dispatch.errors import StartRefused


def certificate(files):
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def test_made_at_first_and_kept(tmp_path):
    first = tls.ensure_tls(tmp_path / "tls")
    content = first.key.read_bytes()
    assert tls.ensure_tls(tmp_path / "tls") == first
    assert first.key.read_bytes() == content
    assert {p.name for p in (tmp_path / "tls").iterdir()} == {"ca.pem", "certificate.pem", "key.pem"}
    assert [p.name for p in tmp_path.iterdir()] == ["tls"], "nothing half-made is left beside it"


def test_nobody_else_can_read_them(tmp_path):
    old = os.umask(0)
    try:
        files = tls.ensure_tls(tmp_path / "tls")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in (files.ca, files.certificate, files.key)} == {0o600}


def test_a_mounted_volume_is_used_as_it_is_and_closed(tmp_path):
    (tmp_path / "tls").mkdir(mode=0o755)
    inode = (tmp_path / "tls").stat().st_ino
    tls.ensure_tls(tmp_path / "tls")
    status = (tmp_path / "tls").stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o700)


def test_half_a_copy_is_not_overwritten(tmp_path):
    ours = tls.ensure_tls(tmp_path / "ours")
    (tmp_path / "copy").mkdir()
    for path in (ours.ca, ours.certificate):
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(StartRefused, match=r"lacks key\.pem: copy"):
        tls.ensure_tls(tmp_path / "copy")
    assert (tmp_path / "copy" / "ca.pem").read_bytes() == ours.ca.read_bytes()


def test_signed_by_the_ca_for_loopback_and_the_names_given(tmp_path):
    files = tls.ensure_tls(tmp_path / "tls", ["gpu-1.internal", "10.0.0.5"])
    leaf = certificate(files)
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    leaf.verify_directly_issued_by(ca)
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "gpu-1.internal"}
    assert {str(a) for a in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "10.0.0.5"}
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_processes_that_start_together_get_the_same_ones(tmp_path):
    code = f"from pathlib import Path; from app.dispatch import tls; tls.ensure_tls(Path({str(tmp_path)!r}) / 'tls')"
    code += "; import sys; sys.stdout.write((Path(sys.argv[1]) / 'tls' / 'key.pem').read_text())"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with ThreadPoolExecutor() as pool:
        keys = list(
            pool.map(lambda _: subprocess.run(command, capture_output=True, check=True).stdout, range(4))
        )
    with ThreadPoolExecutor(16) as pool:
        more = list(pool.map(lambda _: tls.ensure_tls(tmp_path / "other").key.read_bytes(), range(16)))
    assert len(set(keys)) == 1
    assert len(set(more)) == 1


def lose_a_file(files):
    files.ca.unlink()


def open_the_key(files):
    files.key.chmod(0o644)


@pytest.mark.parametrize(
    ("damage", "words"), [(lose_a_file, "lacks ca.pem"), (open_the_key, "anybody on this machine can read")]
)
def test_unusable_files_are_refused_with_what_to_do(tmp_path, damage, words):
    damage(tls.ensure_tls(tmp_path / "tls"))
    with pytest.raises(StartRefused, match=words) as caught:
        tls.ensure_tls(tmp_path / "tls")
    assert caught.value.field == "tls_dir"


def test_a_certificate_that_has_run_out_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tls, "LIFETIME", timedelta(seconds=-1))
    with pytest.raises(StartRefused, match="ran out on"):
        tls.ensure_tls(tmp_path / "tls")


def test_both_ends_must_show_the_certificate(tmp_path):
    security = tls.security(tls.ensure_tls(tmp_path / "tls"))
    assert security.require_encryption
    for role in ("scheduler", "worker"):
        context = security.get_listen_args(role)["ssl_context"]
        assert context.verify_mode.name == "CERT_REQUIRED"
        assert context.minimum_version.name == "TLSv1_3"
