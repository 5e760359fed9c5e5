"""The engine's certificates. Whoever holds them can run code on every machine of the engine: one trust domain."""

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.dispatch.errors import StartRefused

CA, CERTIFICATE, KEY = "ca.pem", "certificate.pem", "key.pem"
LIFETIME = timedelta(days=3650)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """One CA, one certificate and its key, shared by scheduler, workers and API."""

    ca: Path
    certificate: Path
    key: Path


def ensure_tls(directory: Path, hosts: Iterable[str] = ()) -> TlsFiles:
    """The directory's files, made first if there are none.

    Several processes may ask at once: one makes the files while the others wait; the key comes last, and with it they
    are complete. An incomplete set is never overwritten: it may be half a copy of another machine's. The CA's key is
    thrown away: it would be good for nothing but forging members.

    Args:
        directory: Created with mode 0700; an empty one, say a mounted volume, is used as it is.
        hosts: Host names or addresses in the certificate, besides the loopback ones.

    Raises:
        StartRefused: The directory holds something else, others can read the key, or the certificate has run out.
        OSError: The directory cannot be made or written to.
    """
    if not (directory / KEY).exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _turn(directory):
            if not any((directory / name).exists() for name in (CA, CERTIFICATE, KEY)):
                directory.chmod(0o700)
                _make(directory, (*LOOPBACK, *hosts))
    return load_tls(directory)


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """One process at a time."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def load_tls(directory: Path) -> TlsFiles:
    """The files of a directory.

    Raises:
        StartRefused: A file is missing, others can read the key, or the certificate has run out.
    """
    files = TlsFiles(ca=directory / CA, certificate=directory / CERTIFICATE, key=directory / KEY)
    for path in (files.ca, files.certificate, files.key):
        if not path.is_file():
            raise StartRefused(
                f"the certificate directory {directory} lacks {path.name}: copy {CA}, {CERTIFICATE} and {KEY} there "
                "from the machine that made them, or remove the directory to have new ones made",
                "tls_dir",
                str(directory),
            )
    if files.key.stat().st_mode & stat.S_IRWXO:
        raise StartRefused(
            f"anybody on this machine can read {files.key}: run `chmod o= {files.key}`",
            "tls_dir",
            str(directory),
        )
    until = x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc
    if until < datetime.now(UTC):
        raise StartRefused(
            f"the certificate {files.certificate} ran out on {until:%Y-%m-%d}: remove {directory} to have a new one made",
            "tls_dir",
            str(directory),
        )
    return files


def security(files: TlsFiles) -> Any:
    """Dask's view of the files: every connection is encrypted, and both ends must show the certificate."""
    from distributed import Security  # noqa: PLC0415 - heavy, and not needed where only files are made

    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_cert": str(files.certificate) for role in roles}
    pairs |= {f"tls_{role}_key": str(files.key) for role in roles}
    return Security(  # type: ignore[no-untyped-call]
        tls_ca_file=str(files.ca), require_encryption=True, tls_min_version=0x0304, **pairs
    )


def _make(directory: Path, hosts: Iterable[str]) -> None:
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = (
        _builder("Bitwright engine CA", ca_key, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = [_general_name(host) for host in dict.fromkeys(hosts)]
    certificate = (
        _builder("Bitwright engine", key, ca_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(directory / CA, ca.public_bytes(pem))
    _write(directory / CERTIFICATE, certificate.public_bytes(pem))
    _write(directory / KEY, private)


def _builder(
    common: str, key: ec.EllipticCurvePrivateKey, ca_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    """What both certificates have in common; the CA's own is the one whose key is the CA's."""
    now = datetime.now(UTC)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(_name("Bitwright engine CA"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks of other machines may be behind
        .not_valid_after(now + LIFETIME)
        .add_extension(own, critical=False)
        .add_extension(authority, critical=False)
    )


def _write(path: Path, content: bytes) -> None:
    """Readable by the owner alone from the first byte, and there whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    fresh.replace(path)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    address: IPv4Address | IPv6Address
    try:
        address = ip_address(host)
    except ValueError:
        return x509.DNSName(host)
    return x509.IPAddress(address)
