"""What pods say of MIG devices, judged on the devices that a node publishes of divided cards."""

from typing import Any

import pytest

from hami_dra.contract.names import DEVICE_CLASS_MIG, DRIVER_NAME
from hami_dra.contract.quantity import parse_bytes
from hami_dra.contract.settings import decode_settings
from hami_dra.controller.manifests import WebhookAddress, render_objects
from hami_dra.kube.objects import DEVICE_CLASSES
from hami_dra.policy import cel
from hami_dra.policy.migdevices import describe_mig_device, list_mig_devices
from hami_dra.policy.podplan import plan_pod
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakemig import A30_PROFILES, A100_PROFILES, divide
from tests.unit.policy.golden import build_pod

SETTINGS = decode_settings({"dialects": ["hami", "nvidia"]})
CARDS = (divide(make_gpu(0)), divide(make_gpu(1, memory_mib=24576), profiles=A30_PROFILES))
DEVICES = tuple(
    describe_mig_device(device) for device in list_mig_devices(CARDS, {"all"}, lambda *_: True)
)
PROFILES = tuple(profile for profiles in (A100_PROFILES, A30_PROFILES) for profile in profiles)


def find(**row: Any) -> list[tuple[str, str]]:
    """Return card and profile of the devices that a pod may get, in the scheduler's order."""
    plan = plan_pod(build_pod(row, "nvidia.com"), SETTINGS)
    assert plan is not None
    assert plan.template is not None
    (request,) = plan.template["spec"]["spec"]["devices"]["requests"]
    ask = request["exactly"]
    assert ask["deviceClassName"] == DEVICE_CLASS_MIG
    conditions = [*CLASS, *(entry["cel"]["expression"] for entry in ask.get("selectors", ()))]
    least = ask.get("capacity", {"requests": {"memory": "0"}})["requests"]["memory"]
    return [
        (read(device, "parentUUID"), read(device, "profile"))
        for device in DEVICES
        if parse_bytes(device["capacity"]["memory"]["value"]) >= parse_bytes(least)
        and all(cel.evaluate(each, view(device)) is True for each in conditions)
    ]


def view(device: dict[str, Any]) -> Any:
    return cel.view_device(DRIVER_NAME, device)


def read(device: dict[str, Any], attribute: str) -> str:
    return str(device["attributes"][attribute]["string"])


def class_conditions() -> list[str]:
    body = next(
        body
        for resource, body in render_objects(WebhookAddress(url="https://127.0.0.1"), b"")
        if resource is DEVICE_CLASSES and body["metadata"]["name"] == DEVICE_CLASS_MIG
    )
    return [entry["cel"]["expression"] for entry in body["spec"]["selectors"]]


CLASS = class_conditions()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_key_names_what_is_published(profile: Any) -> None:
    found = find(limits={f"mig-{profile.name.replace('+', '.')}": 1})
    assert {name for _, name in found} == {profile.name}
    assert len(found) == len(profile.starts)


@pytest.mark.parametrize(
    ("gpumem", "first"),
    [(1000, "1g.5gb"), (5000, "2g.10gb"), (15000, "3g.20gb"), (40000, "7g.40gb")],
)
def test_the_mode_mig_takes_the_smallest_with_the_memory_first(gpumem: int, first: str) -> None:
    found = find(limits={"gpumem": gpumem}, annotations={"nvidia.com/vgpu-mode": "mig"})
    memory = {profile.name: profile.memory_mib for profile in PROFILES}
    assert found[0][1] in {first, "1g.10gb" if first == "2g.10gb" else first}
    assert all(memory[name] >= gpumem for _, name in found)
    sizes = [memory[name] for uuid, name in found if uuid == CARDS[0].uuid]
    assert sizes == sorted(sizes)


def test_cards_are_named_by_their_own_uuid() -> None:
    wish = {"nvidia.com/vgpu-mode": "mig", "nvidia.com/use-gpuuuid": CARDS[1].uuid}
    found = find(limits={"gpumem": 1000}, annotations=wish)
    assert {uuid for uuid, _ in found} == {CARDS[1].uuid}
