"""The Go library that runtimes read CDI files with accepts what we write, and refuses what we do.

`tests/cluster/tools/cdi` is that library, pinned, with a few lines around it.
"""

import json
import string
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami_dra.cdi.driverfiles import find_driver_files
from hami_dra.cdi.driverroot import DriverRoot
from hami_dra.cdi.hostspecs import HostSpecs
from hami_dra.cdi.spec import DeviceNode, Edits, Mount, render_spec
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.names import CDI_KIND_BASE, CDI_KIND_CLAIM
from hami_dra.node.basedevices import CARD_FILE, BaseDevices
from hami_dra.node.claimspec import FILE_PREFIX, name_devices, name_file, render_claim
from hami_dra.node.ledger import ClaimRecord
from hami_dra.node.settings import InjectPath
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.binding import Binding, BoundDevice
from hami_dra.policy.devices import name_device
from hami_dra.testing.fakegpus import make_gpu
from tests.cluster import toolchain
from tests.unit.cdi.driverroots import LAYOUTS, VERSION, put_nodes

pytestmark = pytest.mark.timeout(600)  # the first run builds the program

KIND = "nvidia.com/gpu"
GPUS = {name_device(gpu.uuid): gpu for gpu in (make_gpu(0), make_gpu(1))}
PROCESS = {
    "ociVersion": "1.2.0",
    "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["NVIDIA_VISIBLE_DEVICES=all"]},
    "linux": {},
}


@dataclass(frozen=True)
class Library:
    """The Go library, as a program that answers line by line."""

    process: subprocess.Popen[str]

    def judge(self, *directories: Path, devices: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return what the library says of directories, and an OCI specification with devices."""
        asked = {"directories": [str(d) for d in directories], "devices": devices, "oci": PROCESS}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(asked)}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def accept(self, directory: Path, *devices: str) -> dict[str, Any]:
        """Return the OCI specification with devices; every file has to be as low as it can be."""
        answer = self.judge(directory, devices=devices)
        assert answer["errors"] == {}
        assert answer["error"] == ""
        assert answer["files"]
        for path, file in answer["files"].items():
            assert file["error"] == "", path
            assert file["declared"] == file["minimum"], path
        injected: dict[str, Any] = answer["oci"]
        return injected


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    """Start the program, built if it has to be."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [toolchain.ensure_cdi_checker()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Library(process)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("moved", [False, True], ids=["same-path", "other-path"])
def test_cards_of_every_layout_can_be_injected(
    library: Library, tmp_path: Path, layout: str, *, moved: bool
) -> None:
    local = tmp_path / "a root"
    LAYOUTS[layout](local)
    put_nodes(tmp_path / "dev", "nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1")
    root = DriverRoot(local, Path("/run/nvidia/driver") if moved else local, tmp_path / "dev")
    store = CdiStore(tmp_path / "cdi", prefix=FILE_PREFIX)
    base = BaseDevices(root, HostSpecs((), ignored_prefix=FILE_PREFIX), store)

    base.write_cards(GPUS)

    ids = tuple(f"{CDI_KIND_BASE}={name}" for name in GPUS)
    oci = library.accept(tmp_path / "cdi", *ids)
    expected = {
        mount.container_path: mount.host_path
        for mount in find_driver_files(root, VERSION).edits.mounts
    }
    assert {mount["destination"]: mount["source"] for mount in oci["mounts"]} == expected
    assert {"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"} <= {
        device["path"] for device in oci["linux"]["devices"]
    }


UIDS = st.uuids().map(str) | st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?", fullmatch=True)
REQUESTS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
PATHS = st.text(string.ascii_letters + string.digits + " ._-%,:=äß漢", min_size=1, max_size=20).map(
    lambda name: f"/srv/{name}/x"
)


@st.composite
def bound_devices(draw: st.DrawFn) -> BoundDevice:
    """Return a result of an allocation: shared or not, limited or not, with admin access or not."""
    gpu = draw(st.sampled_from(sorted(GPUS.items())))
    exclusive, admin = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    return BoundDevice(
        request=draw(REQUESTS),
        pool="node-1",
        device=gpu[0],
        uuid=gpu[1].uuid,
        minor=gpu[1].minor,
        share_id=None if exclusive or admin else draw(st.uuids().map(str)),
        memory_mib=draw(st.integers(0, 40960)),
        cores_percent=draw(st.integers(0, 100)),
        consumed_memory_mib=0,
        consumed_cores=0,
        consumed_slots=1,
        exclusive=exclusive,
        admin=admin,
        control_disabled=draw(st.booleans()),
    )


@st.composite
def bindings(draw: st.DrawFn) -> Binding:
    """Return a claim whose results differ, as those of the scheduler do."""
    devices = draw(
        st.lists(
            bound_devices(),
            min_size=1,
            max_size=6,
            unique_by=lambda device: device.share_id or (device.request, device.device),
        )
    )
    return Binding(claim_uid=draw(UIDS), namespace="team", name="claim", devices=tuple(devices))


@settings(max_examples=150)
@given(
    claims=st.lists(bindings(), min_size=1, max_size=4, unique_by=lambda claim: claim.claim_uid),
    injected=st.lists(st.tuples(PATHS, PATHS, st.booleans()), max_size=2),
)
def test_any_claims_can_be_injected_together(
    library: Library, claims: list[Binding], injected: list[tuple[str, str, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        store = CdiStore(base / "cdi", prefix=FILE_PREFIX)
        directories = ShareDirectories(base / "state")
        for claim in claims:
            record = ClaimRecord(binding=claim, library="/state/lib/libvgpu-1.so", boot_id="b")
            spec, paths = render_claim(
                record,
                directories,
                preload=Path("/state/lib/ld.so.preload"),
                procfs=Path("/proc"),
                inject_paths=[
                    InjectPath(Path(host), inside, read_only=read_only)
                    for host, inside, read_only in injected
                ],
            )
            assert all(paths)
            store.write(name_file(claim.claim_uid), spec)
        ids = [f"{CDI_KIND_CLAIM}={name}" for claim in claims for name in name_devices(claim)]
        assert len(ids) == len(set(ids))

        oci = library.accept(base / "cdi", *ids)

    # A variable of ours replaces the image's; mounts of several devices are there once.
    assert oci["process"]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    mounts = {mount["destination"]: mount["source"] for mount in oci.get("mounts", ())}
    assert len(mounts) == len(oci.get("mounts", ()))
    for claim in claims:
        for device in claim.devices:
            grant = f"/run/vgpu/{claim.claim_uid}_{device.request}/grant"
            shared = [d for d in claim.devices if d.request == device.request and d.controlled]
            assert (grant in mounts) == bool(shared)


@settings(max_examples=100)
@given(
    kind=st.sampled_from([CDI_KIND_CLAIM, CDI_KIND_BASE]),
    names=st.lists(UIDS, min_size=1, max_size=3, unique=True),
    moved=st.booleans(),
    shared=st.booleans(),
)
def test_the_version_is_the_lowest_by_the_librarys_own_account(
    library: Library, kind: str, names: list[str], *, moved: bool, shared: bool
) -> None:
    node = DeviceNode("/driver/dev/x" if moved else "/dev/x", "/dev/x", 195, 0)
    common = Edits(mounts=(Mount("/a", "/b", executable=False),), environment=(("A", "b=c"),))
    with tempfile.TemporaryDirectory() as folder:
        CdiStore(Path(folder), prefix=FILE_PREFIX).write(
            CARD_FILE,
            render_spec(
                kind, [(name, Edits(nodes=(node,))) for name in names], common if shared else None
            ),
        )
        library.accept(Path(folder), *(f"{kind}={name}" for name in names))


EDITS = st.fixed_dictionaries(
    {},
    optional={
        "env": st.sampled_from([["A=b"], ["A"], []]),
        "deviceNodes": st.sampled_from(
            [
                [{"path": "/dev/null"}],
                [{"path": "/dev/null", "hostPath": "/dev/zero", "permissions": "rw"}],
                [{"path": "/dev/null", "type": "x"}],
                [{"path": "/dev/null", "permissions": "rx"}],
                [{"path": "", "type": "c"}],
            ]
        ),
        "mounts": st.sampled_from(
            [
                [{"hostPath": "/etc", "containerPath": "/e", "options": ["ro"]}],
                [{"hostPath": "/etc", "containerPath": "/e", "type": "bind"}],
                [{"hostPath": "", "containerPath": "/e"}],
            ]
        ),
        "hooks": st.sampled_from(
            [
                [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"]}],
                [{"hookName": "whenever", "path": "/bin/true"}],
                [{"hookName": "createContainer", "path": ""}],
            ]
        ),
        "additionalGids": st.sampled_from([[44], []]),
        "netDevices": st.just([{"hostInterfaceName": "eth0", "name": "eth1"}]),
        "intelRdt": st.just({"closID": "x"}),
        "surprise": st.just(1),
    },
)
DEVICES = st.fixed_dictionaries(
    {"name": st.sampled_from(["GPU-1", "GPU-2", "0", "-x", ""]), "containerEdits": EDITS},
    optional={"annotations": st.just({"a.b/c": "d"})},
)
FILES = st.fixed_dictionaries(
    {
        "cdiVersion": st.sampled_from(["0.3.0", "0.5.0", "v0.6.0", "0.7.0", "1.1.0", "2.0.0"]),
        "kind": st.sampled_from([KIND, KIND, KIND, "nvidia.com/gpu.x", "nvidia.com", "1/gpu"]),
        "devices": st.lists(DEVICES, min_size=0, max_size=3),
    },
    optional={"containerEdits": EDITS, "annotations": st.just({"a.b/c": "d"})},
)
PLACES = st.tuples(st.sampled_from(["etc", "run"]), st.sampled_from(["a.json", "b.yaml", "c.txt"]))


@settings(max_examples=400)
@given(files=st.dictionaries(PLACES, FILES, max_size=4))
def test_files_of_others_mean_to_us_what_they_mean_to_a_runtime(
    library: Library, files: dict[tuple[str, str], dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directories = (Path(folder, "etc"), Path(folder, "run"))
        for directory in directories:
            directory.mkdir()
        for (place, name), content in files.items():
            Path(folder, place, name).write_text(json.dumps(content))

        answer = library.judge(*directories)

        resolvable = {name for name in answer["resolvable"] or () if name.startswith(f"{KIND}=")}
        specs = HostSpecs(directories, ignored_prefix=FILE_PREFIX)
        ours = {
            f"{KIND}={name}"
            for name in ("GPU-1", "GPU-2", "0", "-x", "")
            if specs.find_device(KIND, [name])
        }
        assert ours == resolvable
        assert bool(answer["errors"]) == bool(specs.problems)
