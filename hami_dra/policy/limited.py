"""Pods and templates in namespaces that limit GPUs: which claims are counted with their pod.

A claim made from one of admission's templates is counted with its pod, before the pod is stored,
so that its author hears of it. Every other claim is counted when it is created. The two are told
apart by what a tenant cannot forge: the name of such a template is the hash of its content.
"""

from collections.abc import Mapping
from typing import Any

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import ANNOTATION_QUOTA, LABEL_MANAGED_BY, MANAGED_BY
from hami_dra.policy.templates import is_template_name, names_content


def list_own_claims(pod: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of a pod's claims that name a template of admission's, by their names."""
    entries = (pod.get("spec") or {}).get("resourceClaims")
    return {
        str(entry.get("name", "")): str(entry["resourceClaimTemplateName"])
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping) and is_template_name(entry.get("resourceClaimTemplateName"))
    }


def mark_limited(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pod with the mark that lets the API server ask before it stores the pod.

    The same object if there is nothing to mark.
    """
    if not list_own_claims(pod):
        return pod
    metadata = dict(pod.get("metadata") or {})
    annotations = metadata.get("annotations") or {}
    if annotations.get(ANNOTATION_QUOTA) == "true":
        return pod
    metadata["annotations"] = {**annotations, ANNOTATION_QUOTA: "true"}
    return {**pod, "metadata": metadata}


def check_template(body: Mapping[str, Any]) -> None:
    """Refuse a template that only looks like one of admission's.

    Raises:
        UserError: It has admission's label or a name of that form, but another content.
    """
    metadata, spec = body.get("metadata") or {}, body.get("spec") or {}
    name = metadata.get("name")
    labels = (spec.get("metadata") or {}).get("labels") or {}
    if is_template_name(name) or labels.get(LABEL_MANAGED_BY) == MANAGED_BY:
        if names_content(name, spec):
            return
        raise UserError(
            f"the label {LABEL_MANAGED_BY}={MANAGED_BY} and names such as 'hami-gpu-' with 16 hex "
            "digits are reserved for templates made by admission; use others",
            field="spec.metadata.labels" if labels else "metadata.name",
        )
