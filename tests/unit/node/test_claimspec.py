"""What containers of a claim get beside the card."""

from pathlib import Path
from typing import Any

from hami_dra.node.claimspec import render_claim
from hami_dra.node.ledger import ClaimRecord
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.binding import Binding, BoundService
from tests.unit.policy_binding.test_limits import device

PLAIN = BoundService(pipe_directory="/host/pipes")
WITH_SHM = BoundService(pipe_directory="/host/pipes", shm_directory="/host/shm")


def render(*devices: Any) -> tuple[list[dict[str, Any]], list[str]]:
    binding = Binding(claim_uid="uid", namespace="team", name="job", devices=devices)
    record = ClaimRecord(binding=binding, library="/host/libvgpu.so", boot_id="boot")
    spec, paths = render_claim(
        record, ShareDirectories(Path("/state")), preload=Path("/host/preload"), inject_paths=()
    )
    return [found["containerEdits"] for found in spec["devices"]], paths


def mps_of(edits: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    environment = [line for line in edits["env"] if line.startswith("CUDA_MPS_")]
    mounts = {
        mount["containerPath"]: mount["hostPath"]
        for mount in edits["mounts"]
        if mount["hostPath"] in {"/host/pipes", "/host/shm"}
    }
    return environment, mounts


def test_a_client_of_mps_finds_the_daemon_and_its_percentage() -> None:
    (edits,), paths = render(device(mps=WITH_SHM))

    assert mps_of(edits) == (
        ["CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=30"],
        {"/run/nvidia-mps": "/host/pipes", "/dev/shm": "/host/shm"},  # noqa: S108
    )
    assert {"/host/pipes", "/host/shm"} <= set(paths)
    (pipes,) = [m for m in edits["mounts"] if m["hostPath"] == "/host/pipes"]
    assert "rw" in pipes["options"]


def test_a_claim_has_one_percentage_for_all_its_cards() -> None:
    served = {"mps": PLAIN}
    edits, _ = render(
        device("a", **served),
        device("b", cores_percent=50, **served),
        device("c", cores_percent=70),
    )

    assert [mps_of(each) for each in edits] == [
        (
            ["CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=50"],
            {"/run/nvidia-mps": "/host/pipes"},
        )
    ] * 2 + [([], {})]
