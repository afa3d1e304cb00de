"""The driver's own limits and MPS on a real node: what claims say of them, what pods feel."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hami_dra.testing.simgpu import A100, T4, create_driver_root, write_cards
from tests.cluster import cgroups
from tests.cluster.cluster import Cluster
from tests.cluster.config import BUILD
from tests.cluster.manifests import claim, pod_with_claim, text
from tests.cluster.stack import NODE_HEALTH, Stack
from tests.cluster.test_audit import BYPASS
from tests.cluster.test_claim_status import entries
from tests.cluster.test_compute_share import MARGIN_POINTS, settled, work

DRIVER = "615.10.01"
CONTEXT_MIB = 64
SANDBOX_AND_CONTAINER = 2
CARDS = (A100, replace(T4, uuid="GPU-74000001-5157-4a2b-9c3d-0123456789ab"))
GROUPS = next((h.mount for h in cgroups.hierarchies() if "memory" in h.controllers), None)

pytestmark = pytest.mark.skipif(
    GROUPS is None,
    reason="with control groups of version 2 only, a container does not see where its own is, "
    "and the simulated driver knows no other way",
)


class BackendStack(Stack):
    """A stack with a driver that holds limits, and an MPS daemon, as far as pods see one."""

    @property
    def groups(self) -> Path:
        """A mount of control groups that looks like one of version 2."""
        return self.cluster.directory / "groups"

    @property
    def pipes(self) -> Path:
        """Where the daemon would be."""
        return self.cluster.directory / "pipes"

    def node_arguments(self) -> list[str]:
        """Return the usual options and those of the backends."""
        return [
            *super().node_arguments(),
            "--claim-poll-seconds", "1",
            "--audit-context-mib", str(CONTEXT_MIB),
            "--cgroups", str(self.groups),
        ]  # fmt: skip

    def prepare_host(self) -> None:
        """Bring the host into the state in which an operator turns backends on."""
        name = self.cluster.directory.name
        (self.groups / name).mkdir(parents=True)
        (self.groups / "cgroup.controllers").write_text("memory\n")
        source = str(GROUPS / name) if GROUPS else ""
        done = self.cluster.run(["mount", "--bind", source, str(self.groups / name)])
        assert done.returncode == 0, done.stderr
        self.pipes.mkdir()
        (self.pipes / "control").touch()
        create_driver_root(self.driver.root, CARDS, BUILD, driver_version=DRIVER)
        write_cards(self.driver.sim_dir, CARDS, driver_version=DRIVER, cgroup_root=self.groups)


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Iterator[BackendStack]:
    """Install hami-dra on a node whose operator wants both backends."""
    installed = BackendStack.install(cluster, CARDS)
    installed.stop_node()
    installed.prepare_host()
    installed.configure_node(
        {"nvidia": {"memoryBackend": "driver", "mps": {"pipeDirectory": str(installed.pipes)}}}
    )
    installed.start_node()
    yield installed
    print(installed.cluster.logs("node")[-4000:])


def run(stack: Stack, name: str, **parameters: Any) -> None:
    """Run a pod of a claim of 1000 MiB and 30 percent that waits to be told what to do."""
    capacity = {"memory": "1000Mi", "cores": "30", "slots": "1"}
    body = pod_with_claim(name, name)
    # No process of its own on the card: those that the tests run there are all that count.
    body["spec"]["containers"][0]["command"] = ["sh", "-c", "sleep 3600"]
    stack.cluster.apply(text(claim(name, parameters=parameters, **capacity), body))
    stack.cluster.wait_pod_running(name)


def wait_entry(stack: Stack, name: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return what the node says of a claim's card once that is as wanted."""
    found = stack.cluster.wait_for(
        "resourceclaims", name, lambda item: any(map(wanted, entries(item))), "default", 30.0
    )
    (entry,) = entries(found)
    return entry


def says(entry: dict[str, Any], kind: str) -> tuple[str, str]:
    (found,) = [item for item in entry["conditions"] if item["type"] == kind]
    return found["status"], found["reason"]


def wait_limits(stack: Stack, count: int) -> None:
    """Return once this life of the node has set so many limits, which no object tells."""
    line = f'hami_dra_node_driver_limits{{uuid="{A100.uuid}"}} {count:.1f}'
    deadline = time.monotonic() + 30
    while line not in stack.metrics(NODE_HEALTH):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {line}")
        time.sleep(0.2)  # a counter of another process


def is_held(entry: dict[str, Any]) -> bool:
    return any(c["type"] == "DriverLimit" and c["status"] == "True" for c in entry["conditions"])


def around(stack: Stack, name: str, mib: int) -> str:
    """Take memory with a program that goes around libvgpu; return what it said."""
    script = BYPASS.format(mib=mib).replace("cuprobe hold", "cuprobe alloc --json")
    done = stack.cluster.exec(name, "sh", "-c", f"{script} || true")
    return done.stdout + done.stderr


def test_the_driver_stops_who_goes_around_libvgpu(stack: BackendStack) -> None:
    run(stack, "memory", priority=1)
    entry = wait_entry(stack, "memory", is_held)

    assert entry["data"]["backend"] == "libvgpu, driver"
    assert says(entry, "Enforced") == ("True", "Libvgpu")
    assert "OUT_OF_MEMORY" not in around(stack, "memory", 900)
    assert "OUT_OF_MEMORY" in around(stack, "memory", 5000)
    # libvgpu is what an honest program meets, at its share.
    told = stack.cluster.exec("memory", "cuprobe", "alloc", "--json", "1")
    assert json.loads(told.stdout)["total_mib"] == 1000

    stack.stop_node()
    stack.start_node()
    wait_limits(stack, SANDBOX_AND_CONTAINER)
    assert "OUT_OF_MEMORY" in around(stack, "memory", 5000)
    stack.configure_node({"nvidia": {"mps": {"pipeDirectory": str(stack.pipes)}}})
    entry = wait_entry(stack, "memory", lambda entry: not is_held(entry))
    assert entry["data"]["backend"] == "libvgpu"
    assert "OUT_OF_MEMORY" not in around(stack, "memory", 5000)


def test_mps_holds_a_share_in_space(stack: BackendStack, measured: Callable[[str], None]) -> None:
    run(stack, "space", computeBackend="mps", corePolicy="force")
    entry = wait_entry(stack, "space", lambda entry: "mps" in entry["data"]["backend"])
    assert says(entry, "Enforced") == ("True", "Libvgpu")

    served = settled(work(stack, "space", 9))
    waited = [
        float(line.split()[-1])
        for line in stack.metrics(NODE_HEALTH).splitlines()
        if line.startswith("hami_dra_share_throttled_seconds_total{") and 'claim="space"' in line
    ]
    measured(f"30 percent by MPS: {served:.1f}, and libvgpu held launches for {waited} s")
    assert abs(served - 30) <= MARGIN_POINTS
    assert waited == [0.0]

    taken_away = "unset CUDA_MPS_ACTIVE_THREAD_PERCENTAGE; exec cuprobe work 5000 4"
    done = stack.cluster.exec("space", "sh", "-c", taken_away)
    seconds = [json.loads(line) for line in done.stdout.splitlines()][1:]
    elapsed = sum(s["until_ms"] - s["from_ms"] for s in seconds)
    held = 100 * sum(s["busy_ms"] for s in seconds) / elapsed
    measured(f"without the percentage: {held:.1f}")
    assert abs(held - 30) <= 2 * MARGIN_POINTS


def test_a_claim_that_wants_mps_waits_for_a_node_that_has_it(stack: BackendStack) -> None:
    stack.configure_node({})
    stack.cluster.wait_for_all(
        "resourceslices", lambda items: items != [] and '"mps"' not in json.dumps(items)
    )
    capacity = {"memory": "1000Mi", "cores": "30", "slots": "1"}
    wants = claim("wants", parameters={"computeBackend": "mps"}, **capacity)
    stack.cluster.apply(text(wants, pod_with_claim("wants", "wants")))

    def told(items: list[dict[str, Any]]) -> bool:
        return any("computeBackend" in item.get("message", "") for item in items)

    stack.cluster.wait_for_all("events", told, namespace="default", timeout_seconds=60.0)
    stack.configure_node({"nvidia": {"mps": {"pipeDirectory": str(stack.pipes)}}})
    stack.cluster.wait_pod_running("wants", timeout_seconds=120.0)
