"""Why a pod still has its GPU keys: nothing rewrote it, so no scheduler can place it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hami_dra.contract.names import LABEL_WEBHOOK_IGNORE
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects import list_annotations, list_keys
from hami_dra.policy.nodeselection import matches_expressions

Object = Mapping[str, Any]
_LISTS: Final = ("limits", "requests")


def find_kept_keys(pod: Object, settings: AdmissionSettings) -> tuple[str, ...]:
    """Return the keys by which a pod asks for cards, and which admission would have answered."""
    keys = list_keys(settings)
    spec = pod.get("spec") or {}
    written = {
        key
        for kind in ("initContainers", "containers")
        for container in spec.get(kind) or ()
        for name in _LISTS
        for key in ((container.get("resources") or {}).get(name) or {})
    }
    annotations = pod["metadata"].get("annotations") or {}
    asked = (key for key in list_annotations(settings) if key in annotations)
    return (*(key for key in keys if key in written), *asked)


def explain_kept_keys(pod: Object, namespace: Object | None, webhook: Object | None) -> str:
    """Say why admission did not rewrite a pod.

    Args:
        pod: The pod.
        namespace: Its namespace; ``None`` if that could not be read.
        webhook: Our MutatingWebhookConfiguration; ``None`` if there is none.
    """
    labels = pod["metadata"].get("labels") or {}
    if labels.get(LABEL_WEBHOOK_IGNORE) == "ignore":
        return f"its label {LABEL_WEBHOOK_IGNORE}=ignore keeps the webhook away"
    if webhook is None:
        return (
            "there is no MutatingWebhookConfiguration hami-dra: run hami-dra controller bootstrap, "
            "then create the pod again"
        )
    space = namespace["metadata"] if namespace is not None else None
    if space is not None and not _is_selected(webhook, "namespaceSelector", space):
        ignored = (space.get("labels") or {}).get(LABEL_WEBHOOK_IGNORE) == "ignore"
        reason = f" by its label {LABEL_WEBHOOK_IGNORE}=ignore" if ignored else ""
        return f"the webhook's namespaceSelector leaves namespace {space['name']} out{reason}"
    if not _is_selected(webhook, "objectSelector", pod["metadata"]):
        return "the webhook's objectSelector leaves it out by its labels"
    return _explain_seen(pod, webhook)


def _explain_seen(pod: Object, webhook: Object) -> str:
    born, made = (str(each["metadata"].get("creationTimestamp", "")) for each in (pod, webhook))
    if born and made and born < made:
        return f"it was created at {born}, before the webhook at {made}: create it again"
    return (
        "the webhook would have seen it; perhaps it was not there, or its configuration has "
        "changed since: create the pod again"
    )


def _is_selected(webhook: Object, selector: str, metadata: Object) -> bool:
    labels = metadata.get("labels") or {}
    hooks: Sequence[Object] = webhook.get("webhooks") or ({},)
    return any(_selects(hook.get(selector), labels) for hook in hooks)


def _selects(selector: Object | None, labels: Mapping[str, str]) -> bool:
    wanted = (selector or {}).get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and matches_expressions(
        (selector or {}).get("matchExpressions") or (), labels
    )
