"""A second CDI client beside containerd, and images of every family: all take the same files."""

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hami_dra.node.settings import InjectPath
from hami_dra.policy.devices import name_device
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.simgpu import A100, T4, DriverRoot, create_driver_root
from tests.cluster import families, images, simcards, toolchain
from tests.cluster.config import BUILD
from tests.cluster.errors import ClusterError
from tests.cluster.podman import Podman
from tests.cluster.rootfs import Member
from tests.unit.node.rig import make_claim, make_share, put_claim, start_rig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GPUS = {
    name_device(gpu.uuid): gpu
    for number, card in enumerate((A100, T4))
    for gpu in (simcards.make_card(card, number, uuid=card.uuid),)
}
CARDS = tuple(GPUS)
CLAIMS = {
    "one": (make_share(memory_mib=3000, device=CARDS[0]),),
    "other": (make_share(memory_mib=1000, device=CARDS[1], share=2),),
    "again": (make_share(memory_mib=500, device=CARDS[0], share=3),),
    "admin": (make_share(device=CARDS[0], shareID=None, consumedCapacity=None, adminAccess=True),),
}


@dataclass(frozen=True)
class Node:
    """Prepared claims, and what runs containers with them."""

    podman: Podman
    root: Path
    ids: dict[str, list[str]]

    def run(self, claims: tuple[str, ...], *command: str, **options: Any) -> str:
        """Return what a command printed in a container that has claims."""
        done = self.start(self.root, claims, *command, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(
        self, root: Path, claims: tuple[str, ...], *command: str, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container that has claims."""
        devices = list(dict.fromkeys(cdi_id for claim in claims for cdi_id in self.ids[claim]))
        return self.podman.run(root, devices, *command, **options)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> DriverRoot:
    """Return a driver installation with two simulated cards."""
    return create_driver_root(tmp_path_factory.mktemp("driver"), (A100, T4), BUILD)


@pytest.fixture(scope="module")
def node(driver: DriverRoot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Prepare claims as the node plugin does, and hand their CDI files to podman."""
    base = tmp_path_factory.mktemp("node")
    ids = asyncio.run(prepare(base, driver))
    root = families.make_debian(images.cuda_test_image(BUILD).members, base / "rootfs", cache=True)
    try:
        podman = Podman(
            tmp_path_factory.mktemp("podman"),
            base / "cdi",
            toolchain.ensure_tools().runc / "runc",
        )
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)
    yield Node(podman, root, ids)
    podman.close()


async def prepare(base: Path, driver: DriverRoot) -> dict[str, list[str]]:
    """Prepare all claims on a node; return their CDI ids."""
    ids = {}
    async with (
        FakeCluster() as cluster,
        start_rig(
            base,
            cluster,
            driver_root=driver.root,
            sysfs=driver.sysfs_dir,
            libvgpu=BUILD / "src" / "libvgpu.so",
            inject_paths=(InjectPath(driver.sim_dir, "/run/vgpu-sim", read_only=False),),
        ) as rig,
    ):
        rig.gpus.clear()
        rig.gpus.update(GPUS)
        for name, results in CLAIMS.items():
            ref = await put_claim(cluster, make_claim(name, *results))
            prepared = await rig.preparer.prepare(ref)
            ids[name] = [cdi_id for device in prepared for cdi_id in device.cdi_ids]
    return ids


def visible(text: str) -> list[tuple[str, int]]:
    """Return UUID and size of each device; CUDA and NVML have to agree."""
    found = json.loads(text)
    assert all(item["cuda_total_mib"] == item["nvml_total_mib"] for item in found)
    return [(item["uuid"], int(item["cuda_total_mib"])) for item in found]


def results(text: str) -> list[str]:
    return [item["result"] for item in json.loads(text)["allocations"]]


@pytest.mark.parametrize("program", ["cuprobe", "cuprobe-dl"])
def test_a_container_sees_its_share_and_is_held_to_it(node: Node, program: str) -> None:
    assert visible(node.run(("one",), program, "devices", "--json")) == [(A100.uuid, 3000)]
    assert results(node.run(("one",), program, "alloc", "--json", "3000")) == ["CUDA_SUCCESS"]
    assert results(node.run(("one",), program, "alloc", "--json", "3001")) == [
        "CUDA_ERROR_OUT_OF_MEMORY"
    ]


def test_shares_of_two_cards_are_both_there(node: Node) -> None:
    text = node.run(("one", "other"), "cuprobe", "devices", "--json")
    assert sorted(visible(text)) == sorted([(A100.uuid, 3000), (T4.uuid, 1000)])


def test_two_shares_of_a_card_add_up(node: Node) -> None:
    text = node.run(("one", "again"), "cuprobe", "devices", "--json")
    assert visible(text) == [(A100.uuid, 3500)]


def test_the_limit_holds_for_another_user(node: Node) -> None:
    text = node.run(("again",), "cuprobe", "alloc", "--json", "501", user="4711")
    assert results(text) == ["CUDA_ERROR_OUT_OF_MEMORY"]
    attempt = "echo x > /run/vgpu/*/grant || rm /run/vgpu/*/grant || umount /run/vgpu/*/grant"
    assert node.start(node.root, ("again",), "sh", "-c", attempt).returncode != 0


def test_admin_access_is_not_limited(node: Node) -> None:
    text = node.run(("admin",), "cuprobe", "devices", "--json")
    assert visible(text) == [(A100.uuid, A100.memory_mib)]
    assert node.run(("admin",), "sh", "-c", "ls /run; ls /etc/ld.so.preload || true") == (
        "vgpu-sim\n"
    )


def test_a_container_gets_the_nodes_and_only_its_own_cards(node: Node) -> None:
    listed = node.run(("other",), "sh", "-c", "ls /dev | grep nvidia")
    assert listed.split() == ["nvidia-uvm", "nvidia1", "nvidiactl"]
    environment = node.run(("other",), "env", environment={"NVIDIA_VISIBLE_DEVICES": "all"})
    assert "NVIDIA_VISIBLE_DEVICES=void" in environment


Maker = Callable[[Sequence[Member], Path], Path]
FAMILIES: dict[str, tuple[str, Maker]] = {
    "debian-with-cache": (
        f"lib/{families.TRIPLET}",
        partial(families.make_debian, cache=True),
    ),
    "debian": (f"lib/{families.TRIPLET}", partial(families.make_debian, cache=False)),
    "lib64": ("lib64", families.make_lib64),
    "lib": ("lib", families.make_lib),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_every_family_find_our_library(node: Node, tmp_path: Path, family: str) -> None:
    folder, make = FAMILIES[family]
    root = make(images.cuda_test_image(BUILD).members, tmp_path / "rootfs")

    done = node.start(
        root,
        ("one",),
        *("cuprobe-dl", "alloc", "--json", "3001"),
        environment={"LD_DEBUG": "libs"},
    )

    assert done.returncode == 0, done.stderr
    assert results(done.stdout) == ["CUDA_ERROR_OUT_OF_MEMORY"]
    found = re.findall(r"calling init: (\S*)/libcuda\.so\.1$", done.stderr, re.MULTILINE)
    # /lib is a link to usr/lib in all of them, and comes first in every search path.
    assert {re.sub("/+", "/", path).strip("/") for path in found} == {folder}


def test_images_without_glibc_run_and_are_told_that_there_is_no_library(
    node: Node, tmp_path: Path
) -> None:
    done = node.start(families.make_musl(tmp_path / "rootfs"), ("one",), "/probe")

    assert done.returncode == 0, done.stderr
    assert "Error loading shared library libcuda.so.1: No such file" in done.stdout
    assert done.stderr == ""


def test_a_file_that_is_gone_stops_the_container(node: Node, driver: DriverRoot) -> None:
    library = driver.library_dir / "libcuda.so.580.95.05"
    away = library.with_name("away")
    library.rename(away)
    try:
        done = node.start(node.root, ("one",), "true")
    finally:
        away.rename(library)

    assert done.returncode != 0
    assert "libcuda.so.580.95.05" in done.stderr
