"""What containers get of each kind of driver installation."""

import os
from pathlib import Path

import pytest

from hami_dra.cdi.driverfiles import DriverFiles, find_driver_files
from hami_dra.cdi.driverroot import DriverRoot, LinkError
from hami_dra.cdi.libraries import find_libraries
from hami_dra.cdi.nodes import find_card_edits
from hami_dra.contract.errors import RetryError
from tests.unit.cdi.driverroots import (
    ELF_PROGRAM,
    LAYOUTS,
    MACHINE,
    VERSION,
    cos,
    debian,
    driver_container,
    fedora,
    link,
    make_elf,
    nixos,
    put,
    put_compute,
    put_library,
    put_nodes,
    put_programs,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "driverroots"
MULTIARCH = f"usr/lib/{MACHINE}-linux-gnu"


def make_root(base: Path, *nodes: str) -> DriverRoot:
    """Return a root of a plain host: its nodes are in /dev, nothing of the driver is there yet."""
    local = base / "root"
    local.mkdir()
    names = ("nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia0")
    put_nodes(base / "dev", *(nodes or names))
    return DriverRoot(local, Path("/host"), devices=base / "dev", sysfs=base / "sys")


def describe(found: DriverFiles, root: DriverRoot) -> str:
    """Return a line for each mount and node, sorted by where it appears, and each problem."""
    mounts = [
        f"{mount.container_path} <- {mount.host_path}" + ("" if mount.executable else " noexec")
        for mount in found.edits.mounts
    ]
    nodes = [f"{node.container_path} <- {node.host_path}" for node in found.edits.nodes]
    problems = [f"! {problem.replace(str(root.local), 'ROOT')}" for problem in found.problems]
    return "".join(f"{line}\n" for line in (*sorted(mounts), *nodes, *problems))


@pytest.mark.skipif(MACHINE != "x86_64", reason="the golden files name x86_64's directories")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_containers_get_what_the_layout_has(tmp_path: Path, layout: str) -> None:
    root = make_root(tmp_path)
    LAYOUTS[layout](root.local)

    text = describe(find_driver_files(root, VERSION), root)

    golden = GOLDEN / f"{layout}.txt"
    if os.environ.get("HAMI_DRA_WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mount_has_a_file_of_its_own_behind_it(tmp_path: Path, layout: str) -> None:
    root = make_root(tmp_path)
    LAYOUTS[layout](root.local)

    mounts = find_driver_files(root, VERSION).edits.mounts

    places = [mount.container_path for mount in mounts]
    assert len(places) == len(set(places))
    for mount in mounts:
        local = root.to_local(mount.host_path)
        assert local is not None
        assert local.exists()
        assert local.resolve() == local, "a link in it would be followed from the host's root"


def container_files(root: DriverRoot) -> dict[str, str]:
    """Return host paths by the path in the container's /usr/lib64."""
    return {
        mount.container_path.removeprefix("/usr/lib64/"): mount.host_path
        for mount in find_libraries(root, VERSION).mounts
        if mount.container_path.startswith("/usr/lib64/")
    }


def test_both_places_that_a_glibc_may_search_have_the_same(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    debian(root.local)

    mounts = find_libraries(root, VERSION).mounts

    shared = {m.container_path.removeprefix("/usr/lib64/") for m in mounts[len(mounts) // 2 :]}
    multiarch = {m.container_path.removeprefix(f"/{MULTIARCH}/") for m in mounts}
    assert shared == multiarch - {m.container_path for m in mounts}
    assert {"libcuda.so.1", "libcuda.so", "gbm/nvidia-drm_gbm.so"} <= shared


def test_an_update_of_which_the_modules_are_not_loaded_yet_is_told(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    put_compute(root.local / "usr/lib64", version="580.105.08")

    with pytest.raises(RetryError, match=r"580\.105\.08 is: an update of the driver is half done"):
        find_libraries(root, VERSION)


def test_of_two_drivers_containers_get_the_loaded_one(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    directory = root.local / "usr/lib64"
    put_compute(directory, version="580.105.08")
    for stem in ("libcuda", "libnvidia-ml"):
        put(directory / f"{stem}.so.{VERSION}")

    findings = find_libraries(root, VERSION)

    files = container_files(root)
    assert files["libcuda.so.1"] == files["libcuda.so"] == f"/host/usr/lib64/libcuda.so.{VERSION}"
    assert not [name for name in files if "105.08" in name]
    assert "libnvidia-ptxjitcompiler.so.1" not in files
    assert any("containers get libcuda.so.580.95.05" in line for line in findings.problems)


def test_sonames_are_there_without_ldconfig(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    for stem in ("libcuda", "libnvidia-ml"):
        put(root.local / "usr/lib64" / f"{stem}.so.{VERSION}")

    assert {"libcuda.so.1", "libnvidia-ml.so.1"} <= set(container_files(root))


def test_libraries_for_other_machines_are_left_out(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    fedora(root.local)

    found = find_driver_files(root, VERSION)

    hosts = {mount.host_path for mount in found.edits.mounts}
    assert not {host for host in hosts if host.startswith("/host/usr/lib/lib")}
    assert any("usr/lib/libcuda.so.580.95.05 is not a library" in line for line in found.problems)


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"#!/bin/sh\n", make_elf(machine=8), make_elf(bits=32)]
)
def test_a_file_that_is_no_library_is_no_driver(tmp_path: Path, content: bytes) -> None:
    root = make_root(tmp_path)
    put_compute(root.local / "usr/lib64")
    put(root.local / "usr/lib64" / f"libcuda.so.{VERSION}", content)

    with pytest.raises(RetryError, match=r"libcuda\.so\.1 of driver .*is not a library for"):
        find_libraries(root, VERSION)


def test_dead_links_are_told_and_do_no_harm(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    put_compute(root.local / "usr/lib64")
    link(root.local / "usr/lib64/libnvidia-fbc.so.1", f"libnvidia-fbc.so.{VERSION}")
    link(root.local / "usr/lib64/libnvidia-loop.so.1", "libnvidia-loop.so.1")

    findings = find_libraries(root, VERSION)

    absent = f"{root.local}/usr/lib64/libnvidia-fbc.so.{VERSION} does not exist"
    dead = f"libnvidia-fbc.so.1 is a dead link: {absent} (link to libnvidia-fbc.so.{VERSION})"
    assert not [m for m in findings.mounts if "fbc" in m.container_path]
    assert [line.partition("usr/lib64/")[2] for line in findings.problems] == [
        dead,
        "libnvidia-loop.so.1 is a circle of links",
    ]


def test_links_out_of_the_root_are_refused_with_the_reason(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    outside = tmp_path / "outside"
    put_compute(outside)
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        link(root.local / "lib" / name, f"{outside}/{name}")
    for name in ("libcuda.so", f"libcuda.so.{VERSION}"):
        link(root.local / "lib" / name, f"../../../../../../{outside}/{name}")

    with pytest.raises(RetryError, match="a driver root has to contain what its links point to"):
        find_libraries(root, VERSION)


def test_a_link_in_the_middle_stays_below_the_root(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (tmp_path / "secret").mkdir()
    put(tmp_path / "secret" / "file")
    link(root.local / "up", "../secret")
    link(root.local / "absolute", str(tmp_path / "secret"))
    (root.local / "secret").mkdir()
    put(root.local / "secret" / "file")

    assert root.resolve("up/file") == root.local / "secret/file"
    with pytest.raises(LinkError, match="outside"):
        root.resolve("absolute/file")
    with pytest.raises(LinkError, match="does not exist"):
        root.resolve("nowhere/file")


def test_names_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    directory = root.local / "usr/lib64"
    put_compute(directory)
    for raw in (b"libnvidia-a\nb.so.1", b"libnvidia-\xff.so.1", b"libnvidia-a b.so.1"):
        link(directory / os.fsdecode(raw), f"libcuda.so.{VERSION}")
    odd = os.fsdecode(b"odd\n\xff.so." + VERSION.encode())
    put(directory / odd)
    link(directory / "libnvidia-odd.so.1", odd)

    files = container_files(root)

    assert all(name.isprintable() and " " not in name for name in files)
    assert "libnvidia-odd.so.1" not in files


def test_a_root_may_have_spaces(tmp_path: Path) -> None:
    local = tmp_path / "a driver, 100 %"
    local.mkdir()
    root = DriverRoot(local, local)
    put_compute(local / "usr/lib64")

    assert container_files(root)["libcuda.so.1"] == f"{local}/usr/lib64/libcuda.so.{VERSION}"


def test_nodes_come_from_the_root_or_else_from_the_host(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    driver_container(root.local)

    inside = find_driver_files(root, VERSION).edits.nodes

    assert [node.host_path for node in inside] == [
        "/host/dev/nvidiactl",
        "/host/dev/nvidia-uvm",
        "/host/dev/nvidia-uvm-tools",
        "/dev/nvidia-modeset",
    ]
    assert find_card_edits(root, 0).nodes[0].host_path == "/host/dev/nvidia0"
    assert find_card_edits(root, 0).nodes[0].container_path == "/dev/nvidia0"


def test_a_root_without_nodes_has_the_hosts(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    cos(root.local)

    nodes = find_driver_files(root, VERSION).edits.nodes

    assert [node.host_path for node in nodes] == [
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-modeset",
    ]


def test_a_missing_node_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    root = make_root(tmp_path, "nvidiactl")
    cos(root.local)
    put(root.local / "dev/nvidia-uvm", b"a plain file is no device")

    with pytest.raises(RetryError, match=r"dev/nvidia-uvm .* run `nvidia-modprobe -u -c 0`"):
        find_driver_files(root, VERSION)
    with pytest.raises(RetryError, match=r"dev/nvidia7 .* run `nvidia-modprobe -c 7`"):
        find_card_edits(root, 7)


def test_a_card_with_a_display_driver_has_its_nodes_too(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    put_nodes(tmp_path / "dev/dri", "card1", "card2", "renderD128", "renderD129")
    for name in ("card1", "renderD128", "controlD64", "card1-DP-1"):
        (tmp_path / "sys/bus/pci/devices/0000:3b:00.0/drm" / name).mkdir(parents=True)

    nodes = find_card_edits(root, 0, "0000:3b:00.0").nodes

    assert [node.container_path for node in nodes] == [
        "/dev/nvidia0",
        "/dev/dri/card1",
        "/dev/dri/renderD128",
    ]
    assert len(find_card_edits(root, 0, "0000:86:00.0").nodes) == 1


def test_programs_for_another_loader_are_left_out(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    nixos(root.local)

    found = find_driver_files(root, VERSION)

    assert not [m for m in found.edits.mounts if m.container_path.startswith("/usr/bin")]
    assert any("ld-linux.so.2" in line for line in found.problems)
    put_programs(root.local / "usr/bin", "nvidia-smi")
    again = find_driver_files(root, VERSION).edits.mounts
    assert [m.host_path for m in again if m.container_path == "/usr/bin/nvidia-smi"] == [
        "/host/usr/bin/nvidia-smi"
    ]


def test_only_sockets_are_mounted_as_sockets(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    cos(root.local)
    put(root.local / "run/nvidia-persistenced/socket", b"")

    assert not [m for m in find_driver_files(root, VERSION).edits.mounts if not m.executable]


def test_firmware_of_the_running_kernel_comes_first(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    cos(root.local)
    own = f"lib/firmware/{os.uname().release}/nvidia/{VERSION}/gsp_ga10x.bin"
    put(root.local / own, b"own")
    put(root.local / f"lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin", b"any")

    mounts = {m.container_path: m.host_path for m in find_driver_files(root, VERSION).edits.mounts}

    assert mounts[f"/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"] == f"/host/{own}"


def test_a_program_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    cos(root.local)
    put(root.local / "bin/nvidia-smi", ELF_PROGRAM[:70])

    found = find_driver_files(root, VERSION)

    assert "/usr/bin/nvidia-smi" not in {m.container_path for m in found.edits.mounts}
    assert any("no ELF file" in line for line in found.problems)
    (root.local / "bin/nvidia-smi").chmod(0o644)
    assert any("executable" in line for line in find_driver_files(root, VERSION).problems)


def test_the_first_directory_that_has_a_name_has_it(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    put_compute(root.local / "usr/lib64")
    put_library(root.local / "usr/lib", "libcuda", ".so.1")

    assert container_files(root)["libcuda.so.1"].startswith("/host/usr/lib64/")
