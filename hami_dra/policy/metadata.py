"""What a container may read about its devices: the documents of KEP-5304.

Facts (k8s.io/dynamic-resource-allocation api/metadata): a file is a stream of one document for each
version of the format, newest first, all saying the same; ``metadata.generation`` grows with each
change; a request with alternatives is named "request/alternative" inside, "request" in the path;
at most 32 attributes.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from hami_dra.contract import names
from hami_dra.policy.binding import Binding, BoundDevice
from hami_dra.policy.devices import GpuFacts, describe_attributes, name_device

VERSIONS: Final = (
    "metadata.resource.k8s.io/v1beta1",
    "metadata.resource.k8s.io/v1alpha1",
)

ATTR_MEMORY: Final = "memoryMiB"
ATTR_CORES: Final = "coresPercent"
ATTR_SHARE: Final = "shareID"


def describe_request(
    binding: Binding, request: str, gpus: Mapping[str, GpuFacts]
) -> dict[str, Any]:
    """Return what there is to know of a request, without version and generation.

    Args:
        binding: The claim's.
        request: One of ``binding.requests``.
        gpus: This node's cards by device name; one that is not there is described by what the
            binding has of it.
    """
    devices = binding.requests[request]
    full = next((f"{request}/{d.subrequest}" for d in devices if d.subrequest), request)
    document: dict[str, Any] = {
        "metadata": {
            "name": binding.name,
            "namespace": binding.namespace,
            "uid": binding.claim_uid,
        },
        "requests": [
            {"name": full, "devices": [_describe(device, gpus) for device in devices]},
        ],
    }
    if binding.pod_claim:
        document["podClaimName"] = binding.pod_claim
    return document


def encode_metadata(document: Mapping[str, Any], generation: int) -> bytes:
    """Return the stream of a document in all versions."""
    metadata = {**document["metadata"], "generation": generation}
    return b"".join(
        msgspec.json.encode(
            {
                "kind": "DeviceMetadata",
                "apiVersion": version,
                **document,
                "metadata": metadata,
            }
        )
        + b"\n"
        for version in VERSIONS
    )


def decode_metadata(stream: bytes) -> tuple[dict[str, Any], int]:
    """Return the document and the generation of a stream that we wrote.

    Raises:
        ValueError: It is none.
    """
    try:
        first = msgspec.json.decode(stream.split(b"\n", 1)[0], type=dict[str, Any])
        document = {key: first[key] for key in first if key not in {"kind", "apiVersion"}}
        generation = document["metadata"].pop("generation")
    except (msgspec.DecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"not device metadata: {error}") from error
    if not isinstance(generation, int):
        raise ValueError("not device metadata: metadata.generation is no number")  # noqa: TRY004
    return document, generation


def name_container_path(binding: Binding, request: str) -> str:
    """Return where containers find a request's file."""
    place = (
        f"resourceclaimtemplates/{binding.pod_claim}"
        if binding.pod_claim
        else f"resourceclaims/{binding.name}"
    )
    file = f"{names.DRIVER_NAME}-{names.METADATA_FILE}"
    return f"{names.CONTAINER_METADATA_DIR}/{place}/{request}/{file}"


@lru_cache(maxsize=256)
def _describe_card(gpu: GpuFacts) -> Mapping[str, Any]:
    """Return a card's attributes: the same for all claims that have a share of it."""
    return describe_attributes(gpu)


def _describe(device: BoundDevice, gpus: Mapping[str, GpuFacts]) -> dict[str, Any]:
    gpu = gpus.get(name_device(device.mig.card) if device.mig else device.device)
    attributes: dict[str, Any] = (
        {**_describe_card(gpu)} if gpu is not None else {names.ATTR_UUID: {"string": device.uuid}}
    )
    cores = device.cores_percent
    if device.mig is not None:
        cores = device.consumed_cores
        attributes |= {
            names.ATTR_TYPE: {"string": names.DEVICE_TYPE_MIG},
            names.ATTR_UUID: {"string": device.mig.uuid or device.uuid},
            names.ATTR_PROFILE: {"string": device.mig.label},
            names.ATTR_PARENT_UUID: {"string": device.card},
        }
    if not device.admin:
        memory_mib = device.memory_mib or device.consumed_memory_mib
        attributes[ATTR_MEMORY] = {"int": memory_mib}
        attributes[ATTR_CORES] = {"int": cores}
    if device.share_id is not None:
        attributes[ATTR_SHARE] = {"string": device.share_id}
    return {
        "driver": names.DRIVER_NAME,
        "pool": device.pool,
        "name": device.device,
        "attributes": attributes,
    }
