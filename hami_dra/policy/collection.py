"""Which templates nobody needs any more, and what a template was that a pod misses.

Templates have no owner: replicas share them, and the claims made from them live on their own. So
they are deleted by age and disuse, and made again for a pod that came at the wrong moment.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import LABEL_MANAGED_BY, MANAGED_BY, POD_CLAIM_NAME
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.policy.charge import Takes, read_spec
from hami_dra.policy.fit import NodeCards
from hami_dra.policy.podpatch import restore_pod
from hami_dra.policy.podplan import find_own_rewrite, plan_pod
from hami_dra.policy.podview import view_pod
from hami_dra.policy.templates import is_template_name, names_content

Key = tuple[str, str]
"""Namespace and name of a template."""

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """A template in the API server, as far as collecting needs it.

    Attributes:
        key: Namespace and name.
        uid: Of the object.
        resource_version: Of the object.
        created_at: Seconds since the epoch by the API server's clock, ``None`` if not known.
        own: Whether admission made it: label, name and content say so.
        takes: What a claim made from it may take of our cards.
    """

    key: Key
    uid: str
    resource_version: str
    created_at: float | None
    own: bool
    takes: Takes = ()


@dataclass(frozen=True, slots=True)
class PodUse:
    """What a pod has to do with templates of ours.

    Attributes:
        namespace: Of the pod.
        name: Of the pod.
        uid: Of the pod.
        templates: Those that it refers to.
        awaits: The template from which its claim has yet to be made, "" if there is none.
        ended: Whether it will never get a claim any more.
        pod: What decisions read of it, only if it waits.
    """

    namespace: str
    name: str
    uid: str
    templates: tuple[Key, ...]
    awaits: str = ""
    ended: bool = False
    pod: Mapping[str, Any] | None = None


def read_template(body: Mapping[str, Any]) -> StoredTemplate | None:
    """Return what matters of a template, ``None`` if its name is not one of ours."""
    metadata = body["metadata"]
    name = metadata.get("name")
    if not is_template_name(name):
        return None
    labelled = (metadata.get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY
    return StoredTemplate(
        key=(str(metadata.get("namespace", "")), name),
        uid=str(metadata.get("uid", "")),
        resource_version=str(metadata.get("resourceVersion", "")),
        created_at=_read_time(metadata.get("creationTimestamp")),
        own=labelled
        and not metadata.get("deletionTimestamp")
        and names_content(name, body.get("spec") or {}),
        takes=read_spec((body.get("spec") or {}).get("spec") or {}),
    )


def read_use(pod: Mapping[str, Any]) -> PodUse | None:
    """Return what a pod has to do with templates of ours, ``None`` for nothing."""
    metadata = pod["metadata"]
    namespace = str(metadata.get("namespace", ""))
    entries = (pod.get("spec") or {}).get("resourceClaims") or []
    names = {
        str(entry.get("name", "")): str(entry["resourceClaimTemplateName"])
        for entry in entries
        if is_template_name(entry.get("resourceClaimTemplateName"))
    }
    if not names:
        return None
    awaits = names.get(POD_CLAIM_NAME, "") if _waits(pod) else ""
    return PodUse(
        namespace=namespace,
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        templates=tuple((namespace, name) for name in sorted(set(names.values()))),
        awaits=awaits,
        ended=_has_ended(pod),
        pod=_shorten(pod) if awaits else None,
    )


def find_unused(
    templates: Iterable[StoredTemplate],
    used: Collection[Key],
    idle_since: Mapping[Key, float],
    *,
    now: float,
    wall: float,
    age_seconds: float,
) -> list[StoredTemplate]:
    """Return the templates that may go, in the order of their names.

    Args:
        templates: All that are known.
        used: Those that pods refer to.
        idle_since: Since when nobody is known to have referred to a template, by the clock of
            ``now``. One that is missing here has only just been seen.
        now: Monotonic seconds.
        wall: Seconds since the epoch.
        age_seconds: How old a template must be, and for how long unused.
    """
    return sorted(
        (
            template
            for template in templates
            if template.own
            and template.key not in used
            and template.created_at is not None
            and wall - template.created_at >= age_seconds
            and now - idle_since.get(template.key, now) >= age_seconds
        ),
        key=lambda template: template.key,
    )


def rebuild_template(
    use: PodUse,
    settings: AdmissionSettings = DEFAULT_SETTINGS,
    nodes: Collection[NodeCards] | None = (),
) -> dict[str, Any]:
    """Return the template that a pod waits for, decided anew as at its admission.

    Args:
        use: The pod.
        settings: The operator's, the same as the webhook's.
        nodes: The distinct sets of cards that nodes publish; ``None`` while they are not known.

    Raises:
        UserError: It can no longer be found out, or has come out as another one: the settings or
            the sizes of cards are not those of the pod's admission.
        RetryError: The published cards are needed and not known yet.
    """
    if use.pod is None:
        raise UserError("the pod does not wait for a template, or cannot be read")
    original = find_own_rewrite(view_pod(use.pod))
    if original is None:
        raise UserError("the pod has no claim that admission made")
    source = restore_pod(use.pod, original)
    for rotation in range(max((len(node) for node in nodes or ()), default=1) or 1):
        plan = plan_pod(source, settings, nodes=nodes, rotation=rotation)
        if plan is None or plan.template is None:
            break
        if plan.template["metadata"]["name"] == use.awaits:
            return plan.template
        if not plan.request.placement.spread_cards:
            break  # only this preference depends on whose turn it was
    raise UserError(
        f"its original request does not lead to ResourceClaimTemplate {use.awaits} any more: the "
        "settings or the sizes of the cluster's cards have changed since the pod was admitted; "
        "create the pod again"
    )


def _waits(pod: Mapping[str, Any]) -> bool:
    """Whether the claim of a pod has yet to be made (core/v1 PodStatus.resourceClaimStatuses)."""
    status = pod.get("status") or {}
    made = {entry.get("name") for entry in status.get("resourceClaimStatuses") or []}
    return (
        status.get("phase", "Pending") == "Pending"
        and not _has_ended(pod)
        and POD_CLAIM_NAME not in made
    )


def _has_ended(pod: Mapping[str, Any]) -> bool:
    phase = (pod.get("status") or {}).get("phase")
    return phase in {"Succeeded", "Failed"} or bool(pod["metadata"].get("deletionTimestamp"))


def _shorten(pod: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        view: dict[str, Any] = msgspec.to_builtins(view_pod(pod))
    except UserError:
        return None
    (view["metadata"]["annotations"] or {}).pop(_LAST_APPLIED, None)
    return view


def _read_time(text: Any) -> float | None:
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
