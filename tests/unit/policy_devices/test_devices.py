"""Cards as DRA devices, within every limit of the API."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.quantity import MIB, parse_bytes, parse_quantity
from hami_dra.policy.devices import (
    describe_device,
    describe_devices,
    name_device,
    normalize_version,
)
from hami_dra.testing.fakegpus import make_gpu

SEMVER = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def test_a_card_is_described_as_existing_claims_expect_it() -> None:
    device = describe_device(make_gpu(1, memory_mib=40960), split_count=10)

    assert device == {
        "name": "gpu-00000001-1111-2222-3333-444444444444",
        "allowMultipleAllocations": True,
        "attributes": {
            "type": {"string": "hami-gpu"},
            "uuid": {"string": "GPU-00000001-1111-2222-3333-444444444444"},
            "index": {"int": 1},
            "minor": {"int": 1},
            "productName": {"string": "NVIDIA A100-PCIE-40GB"},
            "brand": {"string": "Nvidia"},
            "architecture": {"string": "Ampere"},
            "cudaComputeCapability": {"version": "8.0.0"},
            "driverVersion": {"version": "580.95.5"},
            "cudaDriverVersion": {"version": "13.0.0"},
            "pcieBusID": {"string": "0000:02:00.0"},
            "resource.kubernetes.io/pciBusID": {"string": "0000:02:00.0"},
            "resource.kubernetes.io/pcieRoot": {"string": "pci0000:00"},
            "resource.kubernetes.io/numaNode": {"int": 1},
        },
        "capacity": {
            "memory": {
                "value": "40Gi",
                "requestPolicy": {
                    "default": "40Gi",
                    "validRange": {"min": "0", "max": "40Gi", "step": "1Mi"},
                },
            },
            "cores": {
                "value": "100",
                "requestPolicy": {
                    "default": "100",
                    "validRange": {"min": "0", "max": "100", "step": "1"},
                },
            },
            "slots": {
                "value": "10",
                "requestPolicy": {
                    "default": "1",
                    "validRange": {"min": "0", "max": "10", "step": "1"},
                },
            },
        },
    }


def test_what_the_machine_does_not_show_is_left_out() -> None:
    gpu = replace(make_gpu(), numa_node=None, pcie_root=None)

    attributes = describe_device(gpu, split_count=10)["attributes"]

    assert "resource.kubernetes.io/numaNode" not in attributes
    assert "resource.kubernetes.io/pcieRoot" not in attributes


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("580.95.05", "580.95.5"),
        ("9.0", "9.0.0"),
        ("13", "13.0.0"),
        ("570.00.00", "570.0.0"),
        ("1.2.3.4", "1.2.3"),
        ("535.104.05-grid", "535.104.5"),
        ("", "0.0.0"),
        ("unknown", "0.0.0"),
    ],
)
def test_versions_become_strict_semantic_versions(written: str, expected: str) -> None:
    assert normalize_version(written) == expected


@pytest.mark.parametrize(
    ("uuid", "expected"),
    [
        ("GPU-1234ABCD-0000-1111-2222-333344445555", "gpu-1234abcd-0000-1111-2222-333344445555"),
        ("MIG-1234abcd", "gpu-mig-1234abcd"),
        ("GPU-" + "a" * 90, "gpu-" + "a" * 59),
        ("GPU-a/b c", "gpu-a-b-c"),
    ],
)
def test_names_come_from_the_uuid_and_are_dns_labels(uuid: str, expected: str) -> None:
    assert name_device(uuid) == expected
    assert LABEL.fullmatch(expected)


def test_the_order_is_by_pci_address_whatever_the_driver_says() -> None:
    gpus = [make_gpu(3), make_gpu(1), make_gpu(2)]

    names = [device["name"][:12] for device in describe_devices(gpus, split_count=10)]

    assert names == ["gpu-00000001", "gpu-00000002", "gpu-00000003"]


@given(
    memory_mib=st.integers(1, 1 << 22),
    split_count=st.integers(1, 1000),
    product=st.text(max_size=200),
    driver=st.text(max_size=80),
    uuid=st.uuids(),
)
def test_no_card_can_break_the_limits_of_its_slice(
    memory_mib: int, split_count: int, product: str, driver: str, uuid: object
) -> None:
    gpu = replace(
        make_gpu(memory_mib=memory_mib),
        uuid=f"GPU-{uuid}",
        product_name=product,
        driver_version=driver,
    )

    device = describe_device(gpu, split_count=split_count)

    assert LABEL.fullmatch(device["name"])
    assert len(device["attributes"]) + len(device["capacity"]) <= 32
    for value in device["attributes"].values():
        assert len(value) == 1
        assert len(str(value.get("string", ""))) <= 64
        if "version" in value:
            assert SEMVER.fullmatch(value["version"])
    for capacity in device["capacity"].values():
        check_policy(capacity)
    assert parse_bytes(device["capacity"]["memory"]["value"]) == memory_mib * MIB


def check_policy(capacity: dict[str, Any]) -> None:
    """Assert what the API server's validation asks of a validRange policy."""
    policy = capacity["requestPolicy"]
    value = parse_quantity(capacity["value"])
    default = parse_quantity(policy["default"])
    low, high, step = (parse_quantity(policy["validRange"][key]) for key in ("min", "max", "step"))
    assert 0 <= low <= default <= high <= value
    assert (high - low) % step == 0
    assert (default - low) % step == 0
    assert low + step <= value


@given(text=st.text(max_size=100) | st.from_regex(r"[0-9]{1,40}(\.[0-9]{1,40}){0,4}"))
def test_whatever_a_driver_calls_itself_is_published_as_the_api_takes_it(text: str) -> None:
    gpu = replace(make_gpu(0), driver_version=text, product_name=text, brand=text, pci_bus_id="")
    attributes = describe_device(gpu, split_count=10)["attributes"]
    for attribute in attributes.values():
        if "string" in attribute:
            assert len(attribute["string"].encode()) <= 64
        if "version" in attribute:
            parts = attribute["version"].split(".")
            assert len(parts) == 3
            assert all(str(int(part)) == part and int(part) < 2**63 for part in parts)
