"""Which nodes a pod, or a pool of devices, may be on, as the scheduler's own plugins decide it.

Only what does not depend on other pods: names, labels and taints (k8s.io/component-helpers
scheduling/corev1). Whether CPU and memory suffice is not looked at.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

Object = Mapping[str, Any]
_REPELLING: Final = frozenset({"NoSchedule", "NoExecute"})
_UNSCHEDULABLE: Final = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


def describe_mismatch(pod: Object, node: Object) -> str:
    """Return why a pod cannot be on a node, "" if nothing here keeps it away."""
    spec = pod.get("spec") or {}
    name = node["metadata"]["name"]
    if spec.get("nodeName") and spec["nodeName"] != name:
        return "the pod is bound to another node"
    labels = node["metadata"].get("labels") or {}
    for key, value in (spec.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return f"nodeSelector: {key} is not {value!r} there"
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required and not matches_selector(required, node):
        return "the pod's node affinity excludes it"
    node_spec = node.get("spec") or {}
    taints = list(node_spec.get("taints") or ())
    if node_spec.get("unschedulable"):
        taints.append(_UNSCHEDULABLE)
    taint = find_untolerated(taints, spec.get("tolerations") or ())
    return f"the pod does not tolerate taint {name_taint(taint)}" if taint else ""


def matches_selector(selector: Object, node: Object) -> bool:
    """Whether a node satisfies a NodeSelector: one of its terms, each of them wholly."""
    return any(_matches_term(term, node) for term in selector.get("nodeSelectorTerms") or ())


def _matches_term(term: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    expressions = term.get("matchExpressions") or ()
    names = term.get("matchFields") or ()
    if not expressions and not names:
        return False
    return matches_expressions(expressions, labels) and matches_expressions(names, fields)


def matches_expressions(expressions: Iterable[Object], labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy all requirements of a label or node selector."""
    return all(_matches_expression(expression, labels) for expression in expressions)


def _matches_expression(expression: Object, labels: Mapping[str, str]) -> bool:
    operator, values = expression.get("operator"), list(expression.get("values") or ())
    value = labels.get(expression.get("key", ""))
    if operator in {"NotIn", "DoesNotExist"}:
        return value is None or (operator == "NotIn" and value not in values)
    if value is None:
        return False
    if operator in {"Gt", "Lt"}:
        try:
            have, want = int(value), int(values[0])
        except (ValueError, IndexError):
            return False
        return have > want if operator == "Gt" else have < want
    return operator == "Exists" or (operator == "In" and value in values)


def find_untolerated(taints: Iterable[Object], tolerations: Iterable[Object]) -> Object | None:
    """Return the first taint that keeps something away and is not tolerated.

    For the taints of nodes and of devices, which follow the same rules.
    """
    accepted = list(tolerations)
    for taint in taints:
        if taint.get("effect") in _REPELLING and not any(_tolerates(t, taint) for t in accepted):
            return taint
    return None


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and (toleration.get("value") or "") == (
        taint.get("value") or ""
    )


def name_taint(taint: Object) -> str:
    """Write a taint as kubectl does."""
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint.get('key')}{value}:{taint.get('effect')}"
