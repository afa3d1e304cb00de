"""Which CDI device a card is: the toolkit's, as long as it is right, else our own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hami_dra.cdi.driverroot import DriverRoot
from hami_dra.cdi.hostspecs import HostSpecs
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.errors import RetryError
from hami_dra.contract.names import CDI_KIND_BASE
from hami_dra.node.basedevices import CARD_FILE, BaseDevices
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.policy.binding import BoundDevice
from hami_dra.policy.devices import GpuFacts, name_device
from hami_dra.testing.fakegpus import make_gpu
from tests.unit.cdi.driverroots import VERSION, put_compute, put_nodes, put_socket

LIBRARY = f"usr/lib64/libcuda.so.{VERSION}"


class Bench:
    """A node's directories, and the object under test."""

    def __init__(self, base: Path, *gpus: GpuFacts) -> None:
        self.root = base / "driver"
        put_compute(self.root / "usr/lib64")
        put_nodes(self.root / "dev", "nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1")
        self.etc = base / "etc-cdi"
        self.etc.mkdir()
        self.now = 0.0
        self.gpus = {name_device(gpu.uuid): gpu for gpu in gpus or (make_gpu(0), make_gpu(1))}
        self.store = CdiStore(base / "cdi", prefix=FILE_PREFIX)
        self.base = BaseDevices(
            DriverRoot(self.root, self.root, devices=base / "no-dev", sysfs=base / "sys"),
            HostSpecs((self.etc, base / "cdi"), ignored_prefix=FILE_PREFIX),
            self.store,
            clock=lambda: self.now,
        )

    def resolve(self, number: int = 0) -> str:
        """Return the CDI id of a card."""
        return self.base.resolve(make_bound(number), self.gpus)

    def put_toolkit_spec(self, *devices: tuple[str, int], library: str = LIBRARY) -> None:
        """Write what ``nvidia-ctk cdi generate`` would, with devices by name and minor."""
        spec: dict[str, Any] = {
            "cdiVersion": "0.5.0",
            "kind": "nvidia.com/gpu",
            "devices": [
                {
                    "name": name,
                    "containerEdits": {
                        "deviceNodes": [
                            {
                                "path": f"/dev/nvidia{minor}",
                                "hostPath": f"{self.root}/dev/nvidia{minor}",
                            }
                        ]
                    },
                }
                for name, minor in devices
            ],
            "containerEdits": {
                "mounts": [{"hostPath": f"{self.root}/{library}", "containerPath": "/x"}]
            },
        }
        (self.etc / "nvidia.json").write_text(json.dumps(spec))

    def card_spec(self) -> dict[str, Any]:
        """Return our own file of the cards."""
        found: dict[str, Any] = json.loads((self.store.directory / f"{CARD_FILE}.json").read_text())
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def make_bound(number: int = 0) -> BoundDevice:
    uuid = make_gpu(number).uuid
    return BoundDevice(
        request="gpu",
        pool="node-1",
        device=name_device(uuid),
        uuid=uuid,
        minor=number,
        memory_mib=1000,
        cores_percent=10,
        consumed_memory_mib=1000,
        consumed_cores=10,
        consumed_slots=1,
        share_id="s",
    )


def own(number: int = 0) -> str:
    return f"{CDI_KIND_BASE}={name_device(make_gpu(number).uuid)}"


def test_without_the_toolkit_it_is_our_own(bench: Bench) -> None:
    assert bench.resolve() == own()
    spec = bench.card_spec()
    assert len(spec["devices"]) == 2
    assert spec["containerEdits"]["env"] == ["TRITON_LIBCUDA_PATH=/usr/lib64"]


@pytest.mark.parametrize("name", [make_gpu(0).uuid, "0", "gpu0"])
def test_the_toolkits_device_by_any_of_its_names(bench: Bench, name: str) -> None:
    bench.put_toolkit_spec((name, 0))

    assert bench.resolve() == f"nvidia.com/gpu={name}"


@pytest.mark.parametrize("name", [make_gpu(0).uuid, "0"])
def test_a_device_that_is_another_card_by_now_is_not_used(bench: Bench, name: str) -> None:
    bench.put_toolkit_spec((name, 1))

    with capture_logs() as logs:
        assert bench.resolve() == own()
        assert bench.resolve() == own()

    (line,) = [line for line in logs if line["event"] == "cdi.toolkit_spec_is_stale"]
    assert "it is not /dev/nvidia0, which the card is now" in line["reason"]


def test_an_index_that_shows_no_card_is_not_believed(bench: Bench) -> None:
    bench.put_toolkit_spec(("0", 0))
    path = bench.etc / "nvidia.json"
    path.write_text(path.read_text().replace("/dev/nvidia0", "/dev/null"))

    assert bench.resolve() == own()


def test_a_specification_of_an_older_driver_is_not_used(bench: Bench) -> None:
    bench.put_toolkit_spec((make_gpu(0).uuid, 0), library="usr/lib64/libcuda.so.570.1")

    with capture_logs() as logs:
        assert bench.resolve() == own()

    assert "libcuda.so.570.1 does not exist" in logs[-1]["reason"]
    bench.put_toolkit_spec((make_gpu(0).uuid, 0))
    assert bench.resolve() == f"nvidia.com/gpu={make_gpu(0).uuid}"


def test_a_file_that_the_runtime_refuses_is_told_and_not_used(bench: Bench) -> None:
    bench.put_toolkit_spec((make_gpu(0).uuid, 0))
    path = bench.etc / "nvidia.json"
    path.write_text(path.read_text().replace("0.5.0", "7.5.0"))

    with capture_logs() as logs:
        assert bench.resolve() == own()

    assert [line["event"] for line in logs] == ["cdi.host_spec_refused"]
    assert "unknown cdiVersion '7.5.0'" in logs[0]["reason"]


def test_a_card_without_a_node_waits_and_the_others_do_not(bench: Bench) -> None:
    (bench.root / "dev/nvidia1").unlink()

    assert bench.resolve(0) == own(0)
    with pytest.raises(RetryError, match="nvidia-modprobe -c 1"):
        bench.resolve(1)
    assert len(bench.card_spec()["devices"]) == 1


def test_a_library_that_goes_is_noticed_at_once(bench: Bench) -> None:
    assert bench.resolve() == own()
    (bench.root / LIBRARY).unlink()

    with pytest.raises(RetryError, match=r"libcuda\.so"):
        bench.resolve()


def test_a_new_library_is_noticed_at_once(bench: Bench) -> None:
    bench.resolve()
    (bench.root / "usr/lib64" / f"libnvidia-new.so.{VERSION}").write_bytes(
        (bench.root / LIBRARY).read_bytes()
    )

    bench.resolve()

    mounts = bench.card_spec()["containerEdits"]["mounts"]
    assert [m for m in mounts if "libnvidia-new" in m["containerPath"]]


def test_the_cards_file_is_repaired_as_the_driver_is_now(bench: Bench) -> None:
    bench.base.repair()  # no card is known yet
    assert bench.store.names() == []
    put_socket(bench.root / "run/nvidia-persistenced/socket")
    bench.base.write_cards(bench.gpus)
    assert "nvidia-persistenced" in json.dumps(bench.card_spec())

    bench.store.remove(CARD_FILE)
    bench.base.repair()
    assert "nvidia-persistenced" in json.dumps(bench.card_spec())
    (bench.root / "run/nvidia-persistenced/socket").unlink()
    bench.base.repair()
    assert "nvidia-persistenced" not in json.dumps(bench.card_spec())


def test_a_daemon_that_starts_later_is_found_within_a_minute(bench: Bench) -> None:
    bench.resolve()
    put_socket(bench.root / "run/nvidia-persistenced/socket")
    bench.now += 61

    bench.resolve()

    assert "nvidia-persistenced" in json.dumps(bench.card_spec())


def test_a_card_that_is_gone_is_told(bench: Bench) -> None:
    bench.gpus.clear()
    with pytest.raises(RetryError, match="is gone from this node"):
        bench.resolve()


def test_a_new_driver_version_is_searched_for(bench: Bench) -> None:
    bench.resolve()
    bench.gpus = {name: replace(gpu, driver_version="590.1") for name, gpu in bench.gpus.items()}

    with pytest.raises(RetryError, match=r"update of the driver is half done"):
        bench.resolve()
