"""What the webhook asks for is what the node publishes: the two meet only in the scheduler."""

from hami_dra.contract import names
from hami_dra.policy.devices import GpuFacts, describe_device
from hami_dra.policy.fit import Card, read_cards
from hami_dra.policy.request import Share
from hami_dra.policy.templates import build_template

_GPU = GpuFacts(
    uuid="GPU-00000000-0000-0000-0000-000000000001",
    index=0,
    minor=0,
    product_name="NVIDIA A100-PCIE-40GB",
    brand="Tesla",
    architecture="Ampere",
    compute_capability="8.0",
    driver_version="580.95.05",
    cuda_driver_version="13.0",
    memory_mib=40960,
    pci_bus_id="0000:01:00.0",
)
_DEVICE = describe_device(_GPU, split_count=10)


def test_a_claim_names_only_capacities_that_a_card_has() -> None:
    template = build_template([Share("a", 1, 3000, cores_percent=30)])
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["capacity"]["requests"].keys() == _DEVICE["capacity"].keys()


def test_memory_left_out_is_the_whole_card() -> None:
    """An exclusive share depends on it (docs/decisions/0003-exclusive-memory.md)."""
    memory = _DEVICE["capacity"][names.CAPACITY_MEMORY]
    assert memory["requestPolicy"]["default"] == memory["value"]


def test_the_attributes_of_constraints_and_the_class_are_published() -> None:
    assert _DEVICE["attributes"][names.ATTR_UUID] == {"string": _GPU.uuid}
    assert _DEVICE["attributes"][names.ATTR_TYPE] == {"string": names.DEVICE_TYPE}


def test_warnings_read_what_is_published() -> None:
    spec = {"driver": names.DRIVER_NAME, "devices": [_DEVICE]}
    assert read_cards({"spec": spec}) == [Card(40960, 100, 10)]
