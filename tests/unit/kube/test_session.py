"""Where the API server is."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from hami_dra.contract.errors import FatalError
from hami_dra.kube import ApiError, session
from hami_dra.kube.session import ApiSession, Credentials, load_credentials


@pytest.mark.parametrize(
    ("variables", "server"),
    [
        ({}, "https://kubernetes.default.svc"),
        ({"HOST": "10.96.0.1"}, "https://kubernetes.default.svc"),
        ({"HOST": "10.96.0.1", "PORT": "443"}, "https://10.96.0.1:443"),
        ({"HOST": "fd00::1", "PORT": "6443"}, "https://[fd00::1]:6443"),
    ],
)
async def test_in_a_pod_the_variables_of_kubelet_decide(
    variables: dict[str, str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("t")
    monkeypatch.setattr(session, "_SERVICE_ACCOUNT_DIR", tmp_path)
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(f"KUBERNETES_SERVICE_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"KUBERNETES_SERVICE_{name}", value)
    credentials = await load_credentials(None)
    assert credentials.server == server
    assert credentials.token_file == tmp_path / "token"
    assert credentials.ca_file == tmp_path / "ca.crt"


async def test_elsewhere_a_kubeconfig_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_SERVICE_ACCOUNT_DIR", tmp_path)
    with pytest.raises(FatalError, match="set --kubeconfig"):
        await load_credentials(None)


async def test_a_server_behind_a_path_is_asked_below_it_and_in_time() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        if "slow" in request.path:
            await asyncio.sleep(10)
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        api = ApiSession(Credentials(server=str(server.make_url("/k8s/clusters/c-1"))))
        try:
            for _ in range(2):
                await api.request("GET", "/api/v1/pods/a b", params={"labelSelector": "a=b,c"})
            await api.request("GET", "/api/v1/pods")
            with pytest.raises(ApiError, match="no answer within"):
                await api.request("GET", "/api/v1/slow", timeout_seconds=0.05)
        finally:
            await api.close()
    below = "/k8s/clusters/c-1/api/v1"
    listed = f"{below}/pods/a%20b?labelSelector=a%3Db,c"
    assert asked == [listed, listed, f"{below}/pods", f"{below}/slow"]
