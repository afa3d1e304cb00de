"""Our own authority and what it signs."""

import asyncio
import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from hami_dra.contract.errors import FatalError
from hami_dra.controller.certdir import ensure_certificates

_NOW = dt.datetime.now(tz=dt.UTC)
_HOSTS = ["127.0.0.1", "hami-dra-webhook.hami-dra.svc"]


def _read(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _ensure(directory: Path, days: float = 0, hosts: list[str] = _HOSTS) -> set[str]:
    """Return the names of the files that changed."""
    before = _read(directory)
    ensure_certificates(directory, hosts, _NOW + dt.timedelta(days=days))
    after = _read(directory)
    return {name for name in after if before.get(name) != after[name]}


def test_everything_is_made_once_and_keys_are_private(tmp_path: Path) -> None:
    assert _ensure(tmp_path) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    assert _ensure(tmp_path) == set()
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls.crt").stat().st_mode & 0o777 == 0o644


def test_the_serving_certificate_is_renewed_in_its_last_third(tmp_path: Path) -> None:
    _ensure(tmp_path)
    assert _ensure(tmp_path, days=365 * 2 / 3 - 2) == set()
    assert _ensure(tmp_path, days=365 * 2 / 3 + 2) == {"tls.crt", "tls.key"}


def test_the_authority_is_renewed_with_what_it_signed(tmp_path: Path) -> None:
    _ensure(tmp_path)
    assert _ensure(tmp_path, days=3650 * 2 / 3 + 2) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


def test_other_hosts_need_another_certificate(tmp_path: Path) -> None:
    _ensure(tmp_path)
    assert _ensure(tmp_path, hosts=["webhook.example"]) == {"tls.crt", "tls.key"}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("tls.crt", {"tls.crt", "tls.key"}),
        ("tls.key", {"tls.crt", "tls.key"}),
        ("ca.key", {"ca.crt", "ca.key", "tls.crt", "tls.key"}),
    ],
)
def test_what_is_broken_is_made_anew(tmp_path: Path, name: str, changed: set[str]) -> None:
    _ensure(tmp_path)
    (tmp_path / name).write_text("rubbish")
    assert _ensure(tmp_path) == changed


def test_a_pair_from_another_authority_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _ensure(tmp_path / "a")
    _ensure(tmp_path / "b")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    assert _ensure(tmp_path / "a") == {"tls.crt", "tls.key"}


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match=r"cannot keep certificates in .*/file/x: .*--cert-dir"):
        ensure_certificates(tmp_path / "file" / "x", _HOSTS, _NOW)


async def test_python_trusts_it_strictly(tmp_path: Path) -> None:
    authority = ensure_certificates(tmp_path, _HOSTS, _NOW)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client_context = ssl.create_default_context(cadata=authority.decode())
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=server_context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for host in _HOSTS:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client_context, server_hostname=host
            )
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
    leaf = x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes())
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
