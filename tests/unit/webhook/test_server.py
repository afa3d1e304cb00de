"""The whole process over real TLS, against a fake API server."""

import asyncio
import base64
import io
import socket
import ssl
from asyncio import sslproto
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.objects import SLICES, TEMPLATES
from hami_dra.service.supervise import Supervisor
from hami_dra.service.tls import limit_read_buffers
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.webhook.certs import ServingCertificate
from hami_dra.webhook.metrics import WebhookMetrics
from hami_dra.webhook.process import Settings, serve
from hami_dra.webhook.review import Request, Verdict
from hami_dra.webhook.server import build_app, serve_reviews
from tests.unit.webhook.reviews import build_pod, build_review, encode

_SLICE = {
    "metadata": {"name": "s1"},
    "spec": {
        "driver": DRIVER_NAME,
        "pool": {"name": "node-1"},
        "devices": [
            {
                "name": "gpu-1",
                "capacity": {
                    "memory": {"value": "16Gi"},
                    "cores": {"value": "100"},
                    "slots": {"value": "10"},
                },
            }
        ],
    },
}


@dataclass
class _Client:
    """Talks to a running webhook."""

    http: aiohttp.ClientSession
    base: str
    health: str

    async def post(self, body: bytes, path: str = "/mutate-pods") -> tuple[int, Any]:
        async with self.http.post(f"{self.base}{path}", data=io.BytesIO(body)) as response:
            text = await response.text()
            return response.status, await response.json() if response.status == 200 else text

    async def get(self, path: str) -> tuple[int, str]:
        async with self.http.get(f"{self.health}{path}") as response:
            return response.status, await response.text()


def _write_pair(authority: trustme.CA, directory: Path) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(directory / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(directory / "tls.crt")


def _trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def _running(cluster: FakeCluster, directory: Path) -> AsyncIterator[_Client]:
    authority = trustme.CA()
    _write_pair(authority, directory)
    settings = Settings(
        certificate_dir=directory, host="127.0.0.1", port=0, health_host="127.0.0.1", health_port=0
    )
    connector = aiohttp.TCPConnector(ssl=_trust(authority))
    async with (
        Supervisor() as supervisor,
        serve(settings, cluster.api(), supervisor) as ports,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        yield _Client(
            http, f"https://127.0.0.1:{ports.reviews}", f"http://127.0.0.1:{ports.health}"
        )


async def test_a_pod_is_rewritten_over_tls_and_counted(tmp_path: Path) -> None:
    async with FakeCluster() as cluster, _running(cluster, tmp_path) as client:
        status, answer = await client.post(encode(build_review(build_pod(gpu=1, gpumem=3000))))
        assert status == 200
        assert answer["response"]["allowed"]
        assert b"resourceClaims" in base64.b64decode(answer["response"]["patch"])
        assert len(cluster.objects(TEMPLATES)) == 1
        _, text = await client.get("/metrics")
        line = 'hami_dra_webhook_reviews_total{path="/mutate-pods",result="patched"} 1.0'
        assert line in text
        assert (await client.get("/healthz"))[0] == 200


async def test_malformed_reviews_are_told_what_is_wrong(tmp_path: Path) -> None:
    async with FakeCluster() as cluster, _running(cluster, tmp_path) as client:
        for path in ("/mutate-pods", "/validate-claims"):
            status, text = await client.post(b"{}", path)
            assert (status, "apiVersion" in text) == (400, True)
        status, _ = await client.post(b" " * ((20 << 20) + 1))
        assert status == 413
        async with client.http.get(f"{client.base}/mutate-pods") as response:
            assert response.status == 405
        _, text = await client.get("/metrics")
        assert 'reviews_total{path="/mutate-pods",result="malformed"} 1.0' in text


async def test_slices_feed_warnings(tmp_path: Path) -> None:
    async with FakeCluster() as cluster:
        await cluster.put(SLICES, _SLICE)
        async with _running(cluster, tmp_path) as client:
            body = encode(build_review(build_pod(gpumem=99999), dryRun=True))
            async with asyncio.timeout(10):
                while True:  # until the first list is in
                    _, answer = await client.post(body)
                    assert answer["response"]["allowed"]
                    if "warnings" in answer["response"]:
                        break
            assert "the largest has 16384 MiB" in answer["response"]["warnings"][0]


async def test_it_answers_before_slices_are_read_and_is_ready_after(tmp_path: Path) -> None:
    async with FakeCluster() as cluster:
        cluster.fault = lambda _, path: 503 if "resourceslices" in path else None
        async with _running(cluster, tmp_path) as client:
            _, answer = await client.post(encode(build_review(build_pod(gpumem=99999))))
            assert answer["response"]["allowed"]
            assert "warnings" not in answer["response"]
            status, text = await client.get("/readyz")
            assert status == 503
            assert "serving: ok\nslices: not yet\n" in text
            cluster.fault = None
            async with asyncio.timeout(10):
                while (await client.get("/readyz"))[0] != 200:
                    pass
            assert await client.get("/readyz") == (200, "quotas: ok\nserving: ok\nslices: ok\n")


@asynccontextmanager
async def _serving(
    reviewer: Any, directory: Path, review_seconds: float = 5
) -> AsyncIterator[_Client]:
    authority = trustme.CA()
    _write_pair(authority, directory)
    metrics = WebhookMetrics()
    certificate = ServingCertificate(directory, metrics)
    app = build_app({"/mutate-pods": reviewer}, metrics, review_seconds=review_seconds)
    connector = aiohttp.TCPConnector(ssl=_trust(authority))
    async with (
        serve_reviews(app, "127.0.0.1", 0, certificate.context) as port,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        yield _Client(http, f"https://127.0.0.1:{port}", "")


async def test_an_unexpected_error_is_a_denial_and_not_a_broken_answer(tmp_path: Path) -> None:
    async def explode(_: Request) -> Verdict:
        raise ZeroDivisionError

    async with _serving(explode, tmp_path) as client:
        status, answer = await client.post(encode(build_review({})))
        assert status == 200
        assert answer["response"]["status"]["code"] == 500
        assert "log for review u-1" in answer["response"]["status"]["message"]


async def test_a_slow_decision_asks_to_try_again(tmp_path: Path) -> None:
    async def hang(_: Request) -> Verdict:
        await asyncio.Event().wait()
        return Verdict()

    async with _serving(hang, tmp_path, review_seconds=0.05) as client:
        _, answer = await client.post(encode(build_review({})))
        assert answer["response"]["status"] == {
            "code": 503,
            "reason": "ServiceUnavailable",
            "message": "no decision within 0.05 s; try again",
        }


async def _connect(client: _Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    trust = ssl.create_default_context()
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE
    port = int(client.base.rsplit(":", 1)[1])
    return await asyncio.open_connection("127.0.0.1", port, ssl=trust)


async def test_small_buffers_take_large_bodies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    limit_read_buffers()

    async def allow(request: Request) -> Verdict:
        assert request.object is not None
        return Verdict(warnings=(str(len(request.object["text"])),))

    async with _serving(allow, tmp_path) as client:
        _, answer = await client.post(encode(build_review({"text": "x" * (4 << 20)})))
        assert answer["response"]["warnings"] == [str(4 << 20)]
        _, writer = await _connect(client)
        protocol: Any = writer.transport.__dict__["_ssl_protocol"]
        assert len(protocol._ssl_buffer) == 32 << 10
        writer.close()
        await writer.wait_closed()


async def test_a_body_that_does_not_arrive_ends_the_request(tmp_path: Path) -> None:
    async def allow(_: Request) -> Verdict:
        return Verdict()

    async with _serving(allow, tmp_path, review_seconds=0.05) as client:
        reader, writer = await _connect(client)
        writer.write(b"POST /mutate-pods HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_a_body_in_two_parts_is_one_review(tmp_path: Path) -> None:
    async def allow(_: Request) -> Verdict:
        return Verdict()

    async with _serving(allow, tmp_path) as client:
        whole = encode(build_review({}))

        async def body() -> AsyncIterator[bytes]:
            yield whole[:20]
            await asyncio.sleep(0)
            yield whole[20:]

        async with client.http.post(f"{client.base}/mutate-pods", data=body()) as response:
            assert (await response.json())["response"]["allowed"]


async def test_a_review_in_progress_is_finished_on_the_way_out(tmp_path: Path) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait(_: Request) -> Verdict:
        entered.set()
        await leave.wait()
        return Verdict()

    async with asyncio.TaskGroup() as group:
        async with _serving(wait, tmp_path) as client:
            post = group.create_task(client.post(encode(build_review({}))))
            await entered.wait()
            asyncio.get_running_loop().call_soon(leave.set)
            status, _ = await post
        assert status == 200


async def test_old_tls_is_refused(tmp_path: Path) -> None:
    async def allow(_: Request) -> Verdict:
        return Verdict()

    async with _serving(allow, tmp_path) as client:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        port = int(client.base.rsplit(":", 1)[1])
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def _peer(port: int, authority: trustme.CA) -> bytes:
    """Connect anew and return the server's certificate."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=_trust(authority))
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return certificate


async def test_a_new_pair_is_taken_and_a_mismatched_one_is_not(tmp_path: Path) -> None:
    authority = trustme.CA()
    _write_pair(authority, tmp_path)
    certificate = ServingCertificate(tmp_path, WebhookMetrics())
    app = build_app({}, WebhookMetrics())
    async with serve_reviews(app, "127.0.0.1", 0, certificate.context) as port:
        first = await _peer(port, authority)
        assert not certificate.refresh()
        key = (tmp_path / "tls.key").read_bytes()
        _write_pair(authority, tmp_path)
        new_key = (tmp_path / "tls.key").read_bytes()
        (tmp_path / "tls.key").write_bytes(key)
        assert not certificate.refresh()
        assert await _peer(port, authority) == first
        (tmp_path / "tls.crt").write_text("rubbish")
        assert not certificate.refresh()
        (tmp_path / "tls.key").unlink()
        assert not certificate.refresh()
        assert await _peer(port, authority) == first
        _write_pair(authority, tmp_path)
        assert (tmp_path / "tls.key").read_bytes() != new_key
        assert certificate.refresh()
        assert await _peer(port, authority) != first


def test_a_missing_certificate_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        Exception, match=r"no usable certificate in .*hami-dra controller bootstrap"
    ):
        ServingCertificate(tmp_path, WebhookMetrics())


async def test_a_taken_port_is_an_error_and_leaves_nothing_running(tmp_path: Path) -> None:
    _write_pair(trustme.CA(), tmp_path)
    context = ServingCertificate(tmp_path, WebhookMetrics()).context
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="address"):
        async with serve_reviews(
            build_app({}, WebhookMetrics()), "127.0.0.1", taken.getsockname()[1], context
        ):
            pass


async def test_who_leaves_answers_on_and_asks_for_connections_to_be_closed(tmp_path: Path) -> None:
    authority = trustme.CA()
    _write_pair(authority, tmp_path)
    settings = Settings(
        certificate_dir=tmp_path,
        host="127.0.0.1",
        port=0,
        health_host="127.0.0.1",
        health_port=0,
        leave_seconds=0.5,
    )
    body = encode(build_review(build_pod(gpu=1)))
    async with (
        FakeCluster() as cluster,
        Supervisor() as supervisor,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=_trust(authority))) as http,
        AsyncExitStack() as running,
    ):
        ports = await running.enter_async_context(serve(settings, cluster.api(), supervisor))
        reviews = f"https://127.0.0.1:{ports.reviews}/mutate-pods"
        async with http.post(reviews, data=body) as response:
            assert "Connection" not in response.headers
        leaving = asyncio.create_task(running.aclose())
        async with http.get(f"http://127.0.0.1:{ports.health}/readyz") as response:
            assert response.status == 503
            assert "serving: stopping\n" in await response.text()
        for _ in ("over the kept connection", "over a new one"):
            async with http.post(reviews, data=body) as response:
                assert (response.status, response.headers["Connection"]) == (200, "close")
        await leaving
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.post(reviews, data=body)
