"""``NVIDIA_VISIBLE_DEVICES=none`` for containers without a card (HAMi's ``overwriteEnv``).

Where a vendor's runtime is the node's default, the variable, often part of an image, makes it give
a container every card. A container that gets cards in another way is left alone: a claim, another
resource of the vendor, or privilege.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from hami_dra.policy.podview import Place, PodView, list_places

_NAME: Final = "NVIDIA_VISIBLE_DEVICES"
_NONE: Final = {"name": _NAME, "value": "none"}
_VENDOR: Final = "nvidia.com/"


def hide_cards(pod: Mapping[str, Any], view: PodView, sharing: Collection[str]) -> dict[str, Any]:
    """Return the pod with the variable in every container that should see no card.

    Args:
        pod: The pod, with its GPU keys already replaced.
        view: The same pod.
        sharing: Names of the containers that have a share.
    """
    spec = dict(pod["spec"])
    for place in list_places(view):
        if place.container.name in sharing or _has_other_cards(place):
            continue
        containers = list(spec[place.kind])
        containers[place.index] = _hide(containers[place.index])
        spec[place.kind] = containers
    return {**pod, "spec": spec}


def _has_other_cards(place: Place) -> bool:
    security, resources = place.container.security_context, place.container.resources
    if security is not None and security.privileged:
        return True
    if resources is None:
        return False
    keys = {*(resources.limits or ()), *(resources.requests or ())}
    return bool(resources.claims) or any(key.startswith(_VENDOR) for key in keys)


def _hide(container: dict[str, Any]) -> dict[str, Any]:
    written = container.get("env") or []
    if [variable for variable in written if variable.get("name") == _NAME] == [_NONE]:
        return container
    kept = [variable for variable in written if variable.get("name") != _NAME]
    return {**container, "env": [*kept, _NONE]}
