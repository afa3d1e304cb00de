"""Objects that hold pods, rewritten as admission would rewrite the pods that come of them.

For people who want to see, keep or review the claims instead of leaving them to the webhook. What
is written here is left alone by admission: the keys are gone.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import LABEL_WEBHOOK_IGNORE
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.fit import NodeCards, demands_of_shares, warn_unfit
from hami_dra.policy.percentage import warn_percentage
from hami_dra.policy.podplan import PodPlan, plan_pod
from hami_dra.policy.request import Share
from hami_dra.policy.target import OUR_CARDS

_KNOWN_KINDS: Final = frozenset(
    {
        "Pod",
        "PodTemplate",
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "ReplicationController",
        "Job",
        "CronJob",
    }
)
"""Kinds that take every field of a pod."""
_TEMPLATE_KEYS: Final = frozenset({"template", "podTemplate", "workerPodTemplate"})
_MOST_DEPTH: Final = 32

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of one object.

    Attributes:
        body: The object; the same one if nothing in it asks for cards.
        templates: Those that it needs, with its namespace, and why each is as it is.
        notes: For people, about the object.
    """

    body: Object
    templates: tuple[tuple[Object, tuple[str, ...]], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether it is not the object that came."""
        return bool(self.templates or self.notes)


@dataclass(slots=True)
class _Converter:
    settings: AdmissionSettings
    nodes: Collection[NodeCards]
    namespace: str | None = None
    templates: dict[str, tuple[Object, tuple[str, ...]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert_object(
    body: Object, settings: AdmissionSettings, nodes: Collection[NodeCards] = ()
) -> Conversion:
    """Rewrite every pod, and every template of pods, in an object.

    Args:
        body: Any Kubernetes object; a Volcano Job, or any other kind that holds templates of pods,
            is looked through for them.
        settings: The operator's.
        nodes: Cards as nodes of the cluster publish them, for percentages; none if not known.

    Raises:
        UserError: A pod cannot get what it asks for, by the path of the field in the object.
    """
    converter = _Converter(settings, nodes, _read_namespace(body))
    rewritten = _convert_pod(body, converter, "") if _is_pod(body) else _walk(body, converter, "")
    kind = str(body.get("kind", ""))
    if converter.templates and kind not in _KNOWN_KINDS:
        converter.notes.append(
            f"{kind or 'this object'} is not one of Kubernetes' own kinds: its definition must "
            "allow resourceClaims in the pods it makes"
        )
    notes = tuple(dict.fromkeys(converter.notes))
    return Conversion(rewritten, tuple(converter.templates.values()), notes)


def _read_namespace(body: Mapping[str, Any]) -> str | None:
    metadata = body.get("metadata")
    namespace = metadata.get("namespace") if isinstance(metadata, Mapping) else None
    return str(namespace) if namespace else None


def _is_pod(body: Mapping[str, Any]) -> bool:
    return body.get("kind") == "Pod" and body.get("apiVersion") == "v1"


def _is_template(value: Any) -> bool:
    spec = value.get("spec") if isinstance(value, dict) else None
    containers = spec.get("containers") if isinstance(spec, dict) else None
    return isinstance(containers, list) and all(isinstance(each, dict) for each in containers)


def _walk(value: Any, converter: _Converter, path: str, depth: int = 0) -> Any:
    """Return the value with the templates of pods in it rewritten; the same one without any."""
    if depth > _MOST_DEPTH:
        return value
    items: Iterator[tuple[Any, Any]]
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    else:
        return value
    changed = {}
    for key, inner in items:
        here = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key)
        if key in _TEMPLATE_KEYS and _is_template(inner):
            new = _convert_pod(inner, converter, f"{here}.")
        else:
            new = _walk(inner, converter, here, depth + 1)
        if new is not inner:
            changed[key] = new
    if not changed:
        return value
    if isinstance(value, dict):
        return {**value, **changed}
    return [changed.get(index, each) for index, each in enumerate(value)]


def _convert_pod(template: Object, converter: _Converter, path: str) -> Object:
    metadata = template.get("metadata") or {}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec")}
    try:
        plan = plan_pod(pod, converter.settings, nodes=converter.nodes)
    except UserError as error:
        text = str(error).removeprefix(f"{error.field}: ")
        raise UserError(text, field=f"{path}{error.field}".removesuffix(".")) from error
    if plan is None or not plan.patch:
        return template
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    if isinstance(labels, Mapping) and labels.get(LABEL_WEBHOOK_IGNORE) == "ignore":
        converter.notes.append(
            f"{path}metadata.labels: {LABEL_WEBHOOK_IGNORE}=ignore keeps the webhook away, so this "
            "pod is left as it is"
        )
        return template
    _keep_template(plan, converter)
    converter.notes += [
        f"{path}{note}" if note.startswith("spec.") else note for note in _note(plan, converter)
    ]
    rewritten = {**template, "spec": plan.pod["spec"]}
    if plan.pod["metadata"] or "metadata" in template:
        rewritten["metadata"] = plan.pod["metadata"]
    return rewritten


def _keep_template(plan: PodPlan, converter: _Converter) -> None:
    if plan.template is None:
        return
    name = str(plan.template["metadata"]["name"])
    # Without the label of those that admission makes: the controller leaves it to its owner.
    namespace = {} if converter.namespace is None else {"namespace": converter.namespace}
    body = {**plan.template, "metadata": {"name": name, **namespace}}
    converter.templates.setdefault(name, (body, tuple(_explain(plan))))


def _explain(plan: PodPlan) -> Iterator[str]:
    """Yield why each request is as it is."""
    request = plan.request
    for share in request.shares:
        users = [name for name, owner in request.uses.items() if owner == share.container]
        lists = request.original.get(share.container, {})
        # The API server copies limits to requests, so one of the two says it all.
        doubled = "requests" if lists.get("requests") == lists.get("limits") else ""
        chosen = [values for name, values in lists.items() if name != doubled]
        written = [f"{key}: {value}" for values in chosen for key, value in values.items()]
        yield f"request {share.container}: {describe_share(share)}"
        if written:
            yield f"  because of {', '.join(written)}"
        others = [name for name in users if name != share.container]
        if others:
            yield f"  used by {', '.join(others)} too, which needs no more and runs before it"
        yield from (f"  each of them: {selector}" for selector in share.selectors)
    yield from (f"every card: {selector}" for selector in request.placement.selectors)


def describe_share(share: Share) -> str:
    """Say in words what a share is."""
    one, target = share.cards == 1, share.target
    what, several = "card", "cards"
    if target != OUR_CARDS:
        what = f"device of {target.device_class}"
        several = f"devices of {target.device_class}"
    words = [f"1 {what}" if one else f"{share.cards} different {several}"]
    if share.exclusive:
        words.append("for nobody else")
    each = "of it" if one else "of each"
    if share.memory_mib is not None:
        words.append(f"{share.memory_mib} MiB {each}")
    elif share.memory_percent is not None:
        words.append(f"{float(share.memory_percent):g} % of the memory {each}")
    elif target.memory:
        words.append(f"all the memory {each}")
    if target.cores and not share.exclusive:
        cores = f"{share.cores_percent} % of the compute" if share.cores_percent else "any compute"
        words.append(cores)
    return ", ".join(words)


def _note(plan: PodPlan, converter: _Converter) -> Iterator[str]:
    """Yield what admission would warn of, in words that hold without a cluster."""
    shares = plan.request.shares
    guesses = [] if converter.nodes else [warn_percentage(share, ()) for share in shares]
    yield from (warning for warning in plan.warnings if warning not in guesses)
    if any(guesses):
        yield (
            "the sizes of the cluster's cards are not known here, so a percentage reserves a whole "
            "card and may use its part of it; give --sizes to reserve that part alone"
        )
    if plan.request.placement.spread_cards:
        yield (
            "the wish for another card for every pod is left out: written down, it would be the "
            "same card for all of them; the webhook chooses anew for every pod"
        )
    if converter.nodes:
        yield from warn_unfit(
            [demand for demand in demands_of_shares(shares) if demand.needs[0].cards == 1],
            converter.nodes,
        )
