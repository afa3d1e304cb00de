"""One authenticated connection pool to one API server."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from yarl import URL

from hami_dra.contract.errors import FatalError
from hami_dra.kube.errors import ApiError, error_from_status
from hami_dra.kube.httpclient import aiohttp
from hami_dra.kube.yamlbody import encode_for_yaml

_SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_REREAD_SECONDS: Final = 60.0
"""Projected tokens live an hour and are replaced at 80 %; a minute of lag is harmless."""
_URLS: Final = 256
"""Those of the last so many objects that were read."""
_WATCH_LINE_LIMIT: Final = 8 << 20
"""An object is at most 1.5 MiB in etcd; JSON escapes can make it several times longer."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where the API server is and how to speak to it.

    Attributes:
        server: Base address, such as ``https://10.0.0.1:443``.
        ca_file: CA bundle; ``None`` for the system's.
        client_cert: Certificate and key files; ``None`` for a token.
        token: Bearer token, or ``None``.
        token_file: Read again every minute, wins over ``token``.
        verify: Whether the server's certificate is checked.
    """

    server: str
    ca_file: Path | None = None
    client_cert: tuple[Path, Path] | None = None
    token: str | None = None
    token_file: Path | None = None
    verify: bool = True


class ApiSession:
    """Requests and watches, with the caller's identity and a timeout on each."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._token = credentials.token
        self._token_read_at = float("-inf")
        tls: ssl.SSLContext | bool = True
        if credentials.server.startswith("https"):
            context = ssl.create_default_context(
                cafile=str(credentials.ca_file) if credentials.ca_file else None
            )
            if not credentials.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if credentials.client_cert:
                context.load_cert_chain(*credentials.client_cert)
            tls = context
        self._http = aiohttp.ClientSession(
            # `request` has a timer, and `stream` its own: another one would only cost.
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(ssl=tls, limit=64, keepalive_timeout=60),
            read_bufsize=1 << 20,
            max_line_size=_WATCH_LINE_LIMIT,
        )

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._http.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_seconds: float = 10.0,
    ) -> dict[str, Any]:
        """Send one request and return the decoded object.

        Cancelling may leave the server having done the work; every write we make is idempotent.

        Raises:
            ApiError: No answer in time, no connection, or a status of 400 and more.
        """
        what = f"{method} {path}"
        headers = {"Accept": "application/json", **self._authorization()}
        data = None
        if body is not None:
            applied = content_type == "application/apply-patch+yaml"
            data = encode_for_yaml(body) if applied else msgspec.json.encode(body)
            headers["Content-Type"] = content_type
        try:
            async with asyncio.timeout(timeout_seconds):
                response = await self._http.request(
                    method, self._find_url(path, params), data=data, headers=headers
                )
                async with response:
                    raw = await response.read()
        except TimeoutError as error:
            raise ApiError(f"{what}: no answer within {timeout_seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise ApiError(f"{what}: {error}") from error
        decoded = _decode(raw)
        if response.status >= 400:  # noqa: PLR2004 - HTTP's own boundary
            raise error_from_status(what, response.status, decoded)
        if not isinstance(decoded, dict):
            raise ApiError(f"{what}: the answer is not a JSON object", status=response.status)
        return decoded

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, str], idle_seconds: float
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open a watch and yield an iterator over its events.

        Args:
            path: Collection to watch.
            params: Query, with ``watch=1``.
            idle_seconds: The iterator ends if nothing arrives for so long.

        Raises:
            ApiError: The watch could not be opened, or broke.
        """
        what = f"WATCH {path}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=idle_seconds)
        try:
            url = self._find_url(path, params)
            async with self._http.get(
                url, headers=self._authorization(), timeout=timeout
            ) as response:
                if response.status >= 400:  # noqa: PLR2004 - HTTP's own boundary
                    raise error_from_status(what, response.status, _decode(await response.read()))
                yield _events(response.content)
        except TimeoutError:
            return
        except aiohttp.ClientError as error:
            raise ApiError(f"{what}: {error}") from error

    def _find_url(self, path: str, params: Mapping[str, str] | None) -> URL:
        return _make_url(self._credentials.server + path, tuple((params or {}).items()))

    def _authorization(self) -> dict[str, str]:
        token_file = self._credentials.token_file
        if token_file is not None:
            now = asyncio.get_running_loop().time()
            if now - self._token_read_at >= _TOKEN_REREAD_SECONDS:
                # A few hundred bytes of tmpfs once a minute: not worth a thread.
                self._token = token_file.read_text().strip()
                self._token_read_at = now
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


@lru_cache(maxsize=_URLS)
def _make_url(address: str, params: tuple[tuple[str, str], ...]) -> URL:
    """Return an address. Once: a node reads the same claims again and again."""
    url = URL(address)
    return url.with_query(params) if params else url


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    pending = bytearray()
    async for chunk in content.iter_any():
        pending += chunk
        *lines, rest = pending.split(b"\n")
        pending = bytearray(rest)
        for line in lines:
            event = _decode(bytes(line)) if line.strip() else None
            if isinstance(event, dict):
                yield event


def _decode(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None


async def load_credentials(kubeconfig: Path | None) -> Credentials:
    """Find the API server: the given kubeconfig, else the pod's ServiceAccount.

    Raises:
        FatalError: Neither is usable, with what to set.
    """
    if kubeconfig is not None:
        return await _from_kubeconfig(kubeconfig)
    token_file = _SERVICE_ACCOUNT_DIR / "token"
    if not token_file.exists():
        raise FatalError(
            "no API server: not in a pod (no ServiceAccount token mounted) and no --kubeconfig "
            "given; set --kubeconfig or $KUBECONFIG"
        )
    return Credentials(
        server=_find_server(os.environ),
        ca_file=_SERVICE_ACCOUNT_DIR / "ca.crt",
        token_file=token_file,
    )


def _find_server(environ: Mapping[str, str]) -> str:
    """Return the API server's address in a pod.

    By the variables that kubelet sets in every container, as client-go does: a pod in the host's
    network asks the host's DNS, which knows no Service.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        return "https://kubernetes.default.svc"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


async def _from_kubeconfig(path: Path) -> Credentials:
    # Imported here: 37 MiB and 0.3 s that a process inside the cluster never pays.
    from kubernetes_asyncio import client, config  # noqa: PLC0415

    configuration = client.Configuration()
    try:
        await config.load_kube_config(
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
    except (config.ConfigException, OSError, KeyError, TypeError) as error:
        raise FatalError(f"kubeconfig {path} is not usable: {error}") from error
    bearer = configuration.api_key.get("BearerToken", "")
    return Credentials(
        server=str(configuration.host).rstrip("/"),
        ca_file=Path(configuration.ssl_ca_cert) if configuration.ssl_ca_cert else None,
        client_cert=(Path(configuration.cert_file), Path(configuration.key_file))
        if configuration.cert_file and configuration.key_file
        else None,
        token=bearer.removeprefix("Bearer ") or None,
        verify=bool(configuration.verify_ssl),
    )


@asynccontextmanager
async def connect(kubeconfig: Path | None) -> AsyncIterator[ApiSession]:
    """Open a session and close it on the way out.

    Raises:
        FatalError: See `load_credentials`.
    """
    session = ApiSession(await load_credentials(kubeconfig))
    try:
        yield session
    finally:
        await session.close()
