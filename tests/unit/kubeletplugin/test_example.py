"""The driver of docs/reference/kubelet-plugin.md works as it stands there."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from hami_dra.kube.objects import CLAIMS, NODES, SLICES
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakekubelet import FakeClaim, FakeKubelet

PAGE: Final = Path(__file__).parents[3] / "docs" / "reference" / "kubelet-plugin.md"
DRIVER: Final = "numbers.example.com"
OLD, NEW = (f"{number:08x}-0000-4000-8000-000000000000" for number in (1, 2))
RUN: Final = """
import asyncio, sys
from pathlib import Path

node_name, pod_uid, *paths = sys.argv[1:]
asyncio.run(main(node_name, pod_uid, *map(Path, paths)))
"""


async def start(base: Path, pod_uid: str) -> asyncio.subprocess.Process:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    program = base / "numbersdriver.py"
    program.write_text(found[1] + RUN)
    paths = [str(base / name) for name in ("kubeconfig", "kubelet", "cdi")]
    return await asyncio.create_subprocess_exec(
        sys.executable, str(program), "node-1", pod_uid, *paths, env=dict(os.environ)
    )


async def end(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(90):
        assert await process.wait() == 0


async def put_claim(cluster: FakeCluster, name: str) -> FakeClaim:
    results = [
        {"request": "n/any", "driver": DRIVER, "pool": "node-1", "device": "number-3"},
        {"request": "x", "driver": "other", "pool": "node-1", "device": "other"},
    ]
    body: dict[str, Any] = {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}"},
        "status": {"allocation": {"devices": {"results": results}}},
    }
    await cluster.put(CLAIMS, body)
    return FakeClaim(f"uid-{name}", name, "team")


@pytest.mark.timeout(400)
async def test_the_example_serves_publishes_and_is_replaced(
    base: Path, cluster: FakeCluster
) -> None:
    await cluster.put(NODES, {"metadata": {"name": "node-1", "uid": "node-uid"}})
    (base / "kubeconfig").write_text(
        f"{{clusters: [{{name: c, cluster: {{server: '{cluster.url}'}}}}], "
        "users: [{name: u, user: {token: t}}], current-context: x, "
        "contexts: [{name: x, context: {cluster: c, user: u}}]}"
    )
    kubelet = FakeKubelet(base / "kubelet")
    one, two = await put_claim(cluster, "one"), await put_claim(cluster, "two")
    old = await start(base, OLD)
    try:
        first = await kubelet.register(DRIVER, timeout_seconds=120)
        await cluster.wait_for(lambda: len(cluster.objects(SLICES)) == 1, timeout_seconds=10)
        (stored,) = cluster.objects(SLICES)
        assert [device["name"] for device in stored["spec"]["devices"]] == [
            f"number-{number}" for number in range(8)
        ]
        (device,) = (await kubelet.prepare(first.endpoint, one))["uid-one"].devices
        assert list(device.request_names) == ["n"]
        assert list(device.cdi_device_ids) == [f"{DRIVER}/number=uid-one-number-3"]
        spec = msgspec.json.decode((base / "cdi" / f"{DRIVER}-uid-one.json").read_bytes())
        assert spec["devices"][0]["containerEdits"] == {"env": ["NUMBER=number-3"]}
        gone = FakeClaim("uid-gone", "gone", "team")
        assert "not found" in (await kubelet.prepare(first.endpoint, gone))["uid-gone"].error

        new = await start(base, NEW)
        try:
            second = await kubelet.register(DRIVER, beside={first.endpoint}, timeout_seconds=120)
            await end(old)
            assert (await kubelet.prepare(second.endpoint, two))["uid-two"].error == ""
            answers = await kubelet.unprepare(second.endpoint, one, two)
            assert answers == {"uid-one": "", "uid-two": ""}
        finally:
            await end(new)
    finally:
        if old.returncode is None:
            await end(old)

    assert list((base / "cdi").iterdir()) == []
    assert kubelet.sockets() == []
    assert cluster.objects(SLICES) == [stored]
