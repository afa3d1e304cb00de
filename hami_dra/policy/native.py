"""Whole cards without a webhook: pods that the scheduler understands as they are.

``DeviceClass.spec.extendedResourceName`` (KEP-5004, Kubernetes 1.36) lets it allocate devices for
plain ``nvidia.com/gpu``: it makes a claim without capacities, so a card's defaults are consumed,
which are the whole card (`policy.devices`). With any other word about cards the claim has to say
more, and the pod comes to us (docs/decisions/0015-native-path.md).
"""

from typing import Final

from hami_dra.contract.names import POD_CLAIM_NAME
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects import list_annotations, list_keys, list_prefixes
from hami_dra.policy.dialects.hami_annotations import WISHES
from hami_dra.policy.podview import PodView, list_places
from hami_dra.policy.selectors import quote

_HAS_WORD: Final = (
    "(object.spec.containers + "
    "(has(object.spec.initContainers) ? object.spec.initContainers : []))"
    ".exists(c, has(c.resources) && ("
    "(has(c.resources.limits) && WORD in c.resources.limits) || "
    "(has(c.resources.requests) && WORD in c.resources.requests)))"
)


def is_native(pod: PodView, admission: AdmissionSettings) -> bool:
    """Whether a pod asks for whole cards only, and the operator leaves those to the scheduler."""
    if not admission.native_whole_cards:
        return False
    word = admission.nvidia.resource_count_name
    others = set(list_keys(admission)) - {word}
    prefixes = list_prefixes(admission)
    found = False
    for place in list_places(pod):
        resources = place.container.resources
        if resources is None:
            continue
        for key in {*(resources.limits or ()), *(resources.requests or ())}:
            found |= key == word
            if key in others or key.startswith(prefixes):
                return False
    annotations = pod.metadata.annotations or {}
    lost = {*WISHES, *list_annotations(admission)}
    return (
        found
        and not lost & annotations.keys()
        and pod.spec.scheduler_name not in admission.replace_schedulers
        and all(entry.get("name") != POD_CLAIM_NAME for entry in pod.spec.resource_claims or ())
    )


def write_exception(admission: AdmissionSettings) -> str:
    """Return the CEL expression for pods with the word that must come to us all the same."""
    word = _HAS_WORD.replace("WORD", quote(admission.nvidia.resource_count_name))
    wishes = ", ".join(map(quote, WISHES))
    schedulers = ", ".join(map(quote, admission.replace_schedulers))
    return (
        f"{word} && ((has(object.metadata.annotations) && "
        f"object.metadata.annotations.exists(k, k in [{wishes}])) || "
        f"(has(object.spec.schedulerName) && object.spec.schedulerName in [{schedulers}]))"
    )
