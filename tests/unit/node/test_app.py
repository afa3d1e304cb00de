"""The whole process between a fake kubelet and a fake API server."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from hami_dra.cli.node import node
from hami_dra.contract.errors import FatalError
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.objects import CLAIMS, NODES, SLICES
from hami_dra.kubeletplugin.instances import Instance
from hami_dra.node.app import run_node
from hami_dra.node.settings import NodeSettings, parse_inject_path
from hami_dra.policy.health import CardEvent, CardVitals
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import FakeEvents, FakeGpus, make_gpu
from hami_dra.testing.fakekubelet import FakeClaim, FakeKubelet
from tests.unit.node.rig import NODE, make_claim, make_settings, make_share


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that only the file system tells."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a socket file sets no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    base: Path,
    cluster: FakeCluster,
    gpus: FakeGpus,
    *,
    events: FakeEvents | None = None,
    wait: bool = True,
    **changes: Any,
) -> AsyncIterator[NodeSettings]:
    """Run the process for the length of the block, then end it with SIGTERM.

    With ``wait`` it listens for the kubelet when the block begins.
    """
    kubeconfig = base / "kubeconfig"
    kubeconfig.write_text(
        f"{{clusters: [{{name: c, cluster: {{server: '{cluster.url}'}}}}], "
        "users: [{name: u, user: {token: t}}], current-context: x, "
        "contexts: [{name: x, context: {cluster: c, user: u}}]}"
    )
    await cluster.put(NODES, {"metadata": {"name": NODE, "uid": "node-uid"}})
    settings = make_settings(base, kubeconfig=kubeconfig, health_port=free_port(), **changes)
    task = asyncio.create_task(run_node(settings, source=gpus, events=events))
    await until(lambda: not wait or settings.sockets.registration.is_socket() or task.done())
    try:
        yield settings
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await task


async def read(settings: NodeSettings, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{settings.health_port}/{path}"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.text()


async def ready(settings: NodeSettings) -> tuple[int, str]:
    return await read(settings, "readyz")


async def test_a_pod_is_served_from_registration_to_shutdown(
    base: Path, cluster: FakeCluster
) -> None:
    await cluster.put(CLAIMS, make_claim("job", make_share()))
    kubelet = FakeKubelet(base / "kubelet")
    claim = FakeClaim("uid-job", "job", "team")
    async with running(base, cluster, FakeGpus(make_gpu(0), make_gpu(1))) as settings:
        info = await kubelet.register(DRIVER_NAME)
        await cluster.wait_for(lambda: len(cluster.objects(SLICES)) == 1)
        answer = await kubelet.prepare(info.endpoint, claim)
        assert answer["uid-job"].error == ""
        assert (await ready(settings))[0] == 200
        (stored,) = cluster.objects(SLICES)
        await cluster.remove(SLICES, stored["metadata"]["name"])
        await cluster.wait_for(lambda: len(cluster.objects(SLICES)) == 1, timeout_seconds=2)
        assert await kubelet.unprepare(info.endpoint, claim) == {"uid-job": ""}
        _, metrics = await read(settings, "metrics")
        assert 'hami_dra_node_claims_total{result="prepared"} 1.0' in metrics
        assert 'hami_dra_node_claims_total{result="unprepared"} 1.0' in metrics
        assert 'hami_dra_node_slice_writes_total{verb="create"} 2.0' in metrics
        assert "hami_dra_node_devices 2.0" in metrics

    assert len(cluster.objects(SLICES)) == 1
    assert list((base / "kubelet").rglob("*.sock")) == []
    assert [path.name for path in (base / "cdi").iterdir()] == [f"{DRIVER_NAME}-card.json"]


async def test_without_nvml_the_process_lives_says_so_and_publishes_an_empty_slice(
    base: Path, cluster: FakeCluster
) -> None:
    gpus = FakeGpus(make_gpu(0))
    gpus.fault = "NVML does not initialise: Driver Not Loaded"
    async with running(base, cluster, gpus) as settings:
        await cluster.wait_for(lambda: len(cluster.objects(SLICES)) == 1)
        assert cluster.objects(SLICES)[0]["spec"]["devices"] == []
        status, text = await ready(settings)
        assert status == 503
        assert "nvml: NVML does not initialise: Driver Not Loaded" in text
        gpus.fault = None
        await cluster.wait_for(
            lambda: len(cluster.objects(SLICES)[0]["spec"]["devices"]) == 1, timeout_seconds=5
        )


async def test_a_cdi_directory_that_is_not_writable_is_said_and_survived(
    base: Path, cluster: FakeCluster
) -> None:
    (base / "file").write_text("")
    await cluster.put(CLAIMS, make_claim("job", make_share()))
    cdi = base / "file" / "cdi"
    kubelet = FakeKubelet(base / "kubelet")
    async with running(base, cluster, FakeGpus(make_gpu(0)), cdi_dir=cdi) as settings:
        info = await kubelet.register(DRIVER_NAME)
        await cluster.wait_for(lambda: len(cluster.objects(SLICES)) == 1)
        answer = await kubelet.prepare(info.endpoint, FakeClaim("uid-job", "job", "team"))
        assert f"CDI directory {cdi} is not writable" in answer["uid-job"].error
        assert f"cdi-dir: CDI directory {cdi} is not writable" in (await ready(settings))[1]


async def test_a_changed_configuration_is_published_and_the_claims_of_before_stay(
    base: Path, cluster: FakeCluster
) -> None:
    config = base / "config.yaml"
    config.write_text("nvidia: {devicememoryscaling: 2, devicesplitcount: 4}")
    share = make_share(memory_mib=60000)
    await cluster.put(CLAIMS, make_claim("job", share))
    await cluster.put(CLAIMS, make_claim("new", share | {"shareID": "2"}))
    kubelet = FakeKubelet(base / "kubelet")
    job, new = FakeClaim("uid-job", "job", "team"), FakeClaim("uid-new", "new", "team")

    def published() -> list[tuple[str, str]]:
        return [
            (device["capacity"]["memory"]["value"], device["capacity"]["slots"]["value"])
            for item in cluster.objects(SLICES)
            for device in item["spec"]["devices"]
        ]

    gpus = FakeGpus(make_gpu(0), make_gpu(1))
    async with running(base, cluster, gpus, config=config) as settings:
        info = await kubelet.register(DRIVER_NAME)
        await cluster.wait_for(lambda: published() == [("80Gi", "4"), ("80Gi", "4")])
        assert (await kubelet.prepare(info.endpoint, job))["uid-job"].error == ""

        config.write_text("nvidia: {filterdevices: {index: [1]}}")
        await cluster.wait_for(lambda: published() == [("40Gi", "10")], timeout_seconds=10)
        assert (await kubelet.prepare(info.endpoint, job))["uid-job"].error == ""
        assert "no room" in (await kubelet.prepare(info.endpoint, new))["uid-new"].error

        config.write_text("nvidia: {filterdevices: {minor: [1]}}")
        line = 'hami_dra_node_config_reloads_total{result="refused"} 1.0'
        async with asyncio.timeout(10):
            while line not in (await read(settings, "metrics"))[1]:  # noqa: ASYNC110 - a page
                await asyncio.sleep(0.05)
        assert "hami_dra_node_config_current 0.0" in (await read(settings, "metrics"))[1]
        assert published() == [("40Gi", "10")]


async def test_what_a_driver_reports_becomes_taints_and_ends(
    base: Path, cluster: FakeCluster
) -> None:
    config = base / "config.yaml"
    config.write_text(
        "health: {quietSeconds: 0, goodLooks: 1, badLooks: 1, fatalEffect: NoExecute}"
    )
    card = make_gpu(0)
    gpus, events = FakeGpus(card), FakeEvents(card.uuid)

    def taints() -> list[tuple[str, str, str]]:
        return [
            (taint["key"].rpartition("/")[2], taint["value"], taint["effect"])
            for item in cluster.objects(SLICES)
            for device in item["spec"]["devices"]
            for taint in device.get("taints") or ()
        ]

    async with running(base, cluster, gpus, events=events, config=config) as settings:
        await cluster.wait_for(lambda: len(cluster.objects(SLICES)) == 1)
        gpus.vitals = {card.uuid: CardVitals(recovery_action=1)}
        events.pending.put_nowait(CardEvent(card.uuid, "xid", 13))
        events.pending.put_nowait(CardEvent(card.uuid, "xid", 95))
        marks = [("recovery", "gpu-reset", "NoExecute"), ("xid", "95", "NoExecute")]
        await cluster.wait_for(lambda: taints() == marks, timeout_seconds=10)
        _, metrics = await read(settings, "metrics")
        assert f'hami_dra_node_card_xids_total{{uuid="{card.uuid}",xid="13"}} 1.0' in metrics
        fault = "gpu.project-hami.io/xid"
        assert f'hami_dra_node_card_fault{{key="{fault}",uuid="{card.uuid}"}} 1.0' in metrics
        assert "hami_dra_node_cards_watched 1.0" in metrics

        gpus.vitals = {card.uuid: CardVitals(recovery_action=0)}
        await cluster.wait_for(lambda: not taints(), timeout_seconds=10)


async def test_a_state_directory_that_cannot_be_used_is_waited_for(
    base: Path, cluster: FakeCluster
) -> None:
    (base / "disk").write_text("not mounted yet")
    await cluster.put(CLAIMS, make_claim("job", make_share()))
    state = base / "disk" / "state"
    kubelet = FakeKubelet(base / "kubelet")
    async with running(
        base, cluster, FakeGpus(make_gpu(0)), state_dir=state, wait=False
    ) as settings:
        while "state-dir: --state-dir" not in await ready_text(settings):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert kubelet.sockets() == [], "the kubelet would call"
        (base / "disk").unlink()
        info = await kubelet.register(DRIVER_NAME)
        answer = await kubelet.prepare(info.endpoint, FakeClaim("uid-job", "job", "team"))
        assert answer["uid-job"].error == ""


async def ready_text(settings: NodeSettings) -> str:
    """Return what /readyz says, nothing while nobody listens."""
    try:
        return (await ready(settings))[1]
    except aiohttp.ClientConnectionError:
        return ""


async def test_two_processes_do_not_share_a_state_directory(
    base: Path, cluster: FakeCluster
) -> None:
    async with running(base, cluster, FakeGpus()) as settings:
        await FakeKubelet(base / "kubelet").register(DRIVER_NAME)
        for pod_uid in ("", "11111111-2222-4333-8444-555555555555"):
            with (
                pytest.raises(FatalError, match="another node process"),
                Instance.join(settings.state_dir, pod_uid=pod_uid),
            ):
                pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"node_name": ""}, "--node-name"),
        ({"kubelet_dir": Path("/" + "x" * 90)}, "--kubelet-dir"),
        ({"libvgpu": Path("/nowhere/libvgpu.so")}, "--libvgpu"),
        ({"state_dir": Path("relative")}, "--state-dir"),
        ({"split_count": 0}, "--split-count"),
    ],
)
def test_impossible_settings_name_their_option(
    base: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(FatalError, match=words):
        make_settings(base, **changes).check()


@pytest.mark.parametrize(
    ("text", "host", "container", "read_only"),
    [
        ("/run/x", "/run/x", "/run/x", True),
        ("/run/x:/y", "/run/x", "/y", True),
        ("/run/x:/y:rw", "/run/x", "/y", False),
        ("/run/x:rw", "/run/x", "/run/x", False),
    ],
)
def test_paths_to_inject(text: str, host: str, container: str, *, read_only: bool) -> None:
    path = parse_inject_path(text)

    assert (str(path.host), path.container, path.read_only) == (host, container, read_only)


@pytest.mark.parametrize("text", ["", "relative", "/a:b", "/a:/b:/c", "/a:/b:/c:rw"])
def test_paths_to_inject_that_make_no_sense(text: str) -> None:
    with pytest.raises(FatalError, match="--inject-path"):
        parse_inject_path(text)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        node, ["--node-name", "n", "--libvgpu", str(tmp_path / "absent.so")]
    )

    assert isinstance(result.exception, FatalError)
    assert "--libvgpu" in str(result.exception)
