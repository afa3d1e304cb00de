"""docs/how-to/simulated.md: its commands for a cluster of one's own, run as they stand there.

Only what a cluster in namespaces has elsewhere is put in its place: paths, the node's name, and the
image, which no registry can be asked for. What installs packages or builds is done already.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.config import BUILD, ROOT
from tests.cluster.images import CUDA_TEST

PAGE = ROOT / "docs" / "how-to" / "simulated.md"
DONE_BEFORE = ("apt-get", "cd ", "export ", "meson ", "kubectl cp")
BACKGROUND = {"hami-dra node": "http://127.0.0.1:8080", "hami-dra webhook": "http://127.0.0.1:8081"}


def read_commands(heading: str) -> list[str]:
    """Return the commands below a heading: what follows ``# ``, with its continuations."""
    section = PAGE.read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    commands = [
        command.rstrip()
        for block in blocks
        for command in re.split(r"^# ", block, flags=re.MULTILINE)
        if command.strip()
    ]
    return [command for command in commands if not command.startswith(DONE_BEFORE)]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder with ``hami-dra`` and ``python``, as an installation has them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in (("hami-dra", "-m hami_dra "), ("python", "")):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        path.chmod(0o755)
    return folder


def test_the_commands_of_the_page_lead_to_a_share(
    cluster: Cluster, tmp_path: Path, programs: Path
) -> None:
    environment = {
        "PATH": f"{programs}:{cluster.environment()['PATH']}",
        "PYTHONPATH": str(ROOT),
        "KUBECONFIG": str(cluster.admin_kubeconfig),
        "HAMI_DRA_KUBELET_DIR": str(cluster.kubelet_directory),
        "HAMI_DRA_CDI_DIR": str(cluster.cdi_directory),
        "HAMI_DRA_STATE_DIR": str(tmp_path / "state"),
    }
    places = {
        "/var/lib/sim": str(cluster.directory / "sim"),
        "/var/lib/hami-dra": str(tmp_path / "hami-dra"),
        "/etc/kubernetes/admin.conf": str(cluster.admin_kubeconfig),
        "/hami-dra/build/libvgpu": str(BUILD),
        "kind-control-plane": cluster.api.items("nodes")[0]["metadata"]["name"],
        "debian:12": CUDA_TEST,
    }
    outputs: dict[str, str] = {}
    for written in read_commands("On a cluster of yours, such as kind's"):
        command = written
        for there, here in places.items():
            command = command.replace(there, here)
        service = next((address for name, address in BACKGROUND.items() if name in command), None)
        shell = ["sh", "-c", f"cd {ROOT}; {command.removesuffix('&')}"]
        if service is not None:
            name = f"page-{len(outputs)}"
            cluster.start_process(name, shell, environment, ready=f"{service}/readyz")
        else:
            if command.startswith("kubectl exec"):
                cluster.wait_pod_running("share")
            done = cluster.run(shell, environment)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            outputs[written.split("#")[0].strip()] = done.stdout
        outputs.setdefault(written, "")

    assert "\n00000-hami-core-gpu.project-hami.io-" in outputs["kubectl get resourceslices"]
    assert "3000" in outputs["kubectl exec share -- cuprobe-dl devices"]
    allocated = outputs["kubectl exec share -- cuprobe-dl alloc 2900 200"]
    assert re.search(r"2900 MiB: ok\n.*200 MiB: .*OUT_OF_MEMORY", allocated), allocated
    assert os.path.lexists(places["/var/lib/sim"])


def test_the_page_still_has_its_commands() -> None:
    first = read_commands("On a cluster of yours, such as kind's")[0]
    assert first.startswith("python -m hami_dra.testing.simroot /var/lib/sim")
