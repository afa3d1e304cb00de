"""Objects that exist once per cluster; the YAML files here are their only source."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import yaml

from hami_dra.contract.names import LABEL_VGPU_MANAGER_IGNORE
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.kube import Resource
from hami_dra.kube.objects import DEVICE_CLASSES, MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS
from hami_dra.policy.dialects import list_annotations, list_keys, list_prefixes
from hami_dra.policy.native import write_exception
from hami_dra.policy.selectors import quote

_OBJECTS: Final = (
    (DEVICE_CLASSES, "deviceclass.yaml"),
    (MUTATING_WEBHOOKS, "mutatingwebhook.yaml"),
    (VALIDATING_WEBHOOKS, "validatingwebhook.yaml"),
)
_CHARGES: Final = "charges.gpu.project-hami.io"
_PATHS: Final = {
    "pods.gpu.project-hami.io": "/mutate-pods",
    "claims.gpu.project-hami.io": "/validate-claims",
    _CHARGES: "/validate-pods",
}
_GPU_KEYS: Final = "GPU_KEYS"
"""Stands in an expression for the list of resource names."""
_GPU_PREFIXES: Final = "GPU_PREFIXES"
"""Stands in an expression for the list of how further resource names begin."""
_GPU_ANNOTATIONS: Final = "GPU_ANNOTATIONS"
"""Stands in an expression for the list of annotations by which pods ask for cards."""
_POD_IS_IGNORED: Final = "POD_IS_IGNORED"
"""Stands for whether a label keeps a pod away from the webhook that rewrites pods."""
_NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
"""Label that the API server puts on every namespace."""
_OTHER_PODS_SECONDS: Final = 2
"""How long a pod that asks for no card may be held up."""


@dataclass(frozen=True, kw_only=True)
class WebhookAddress:
    """How the API server reaches the webhook: by URL or by Service.

    Attributes:
        url: Base such as ``https://10.0.0.1:8443``; "" for the Service.
        namespace: The Service's namespace.
        name: The Service's name.
        port: The Service's port.
    """

    url: str = ""
    namespace: str = "hami-dra"
    name: str = "hami-dra-webhook"
    port: int = 443

    def client_config(self, path: str, ca_bundle: bytes) -> dict[str, Any]:
        """Return a webhook's ``clientConfig``."""
        config: dict[str, Any] = {"caBundle": base64.b64encode(ca_bundle).decode()}
        if self.url:
            return {**config, "url": f"{self.url.rstrip('/')}{path}"}
        service = {
            "namespace": self.namespace,
            "name": self.name,
            "port": self.port,
            "path": path,
        }
        return {**config, "service": service}


def render_objects(
    address: WebhookAddress, ca_bundle: bytes, admission: AdmissionSettings = DEFAULT_SETTINGS
) -> Iterator[tuple[Resource, dict[str, Any]]]:
    """Yield every object as it is to be applied, in that order.

    The classes come first: a pod admitted before they exist would wait for them.
    """
    namespaces: dict[str, Any] = {}
    fillings = _list_fillings(admission)
    yield DEVICE_CLASSES, _load("deviceclass-mig.yaml")
    for resource, file in _OBJECTS:
        body = _load(file)
        if resource is DEVICE_CLASSES and admission.native_whole_cards:
            body["spec"]["extendedResourceName"] = admission.nvidia.resource_count_name
        webhooks = body.get("webhooks", ())
        for webhook in webhooks:
            webhook["clientConfig"] = address.client_config(_PATHS[webhook["name"]], ca_bundle)
            if resource is MUTATING_WEBHOOKS:
                _choose_pods(webhook, admission)
                fillings[_POD_IS_IGNORED] = _write_unselected(webhook["objectSelector"])
                namespaces = webhook["namespaceSelector"]
            elif webhook["name"] == _CHARGES:
                webhook["namespaceSelector"] = namespaces
            for condition in webhook["matchConditions"]:
                for placeholder, text in fillings.items():
                    condition["expression"] = condition["expression"].replace(placeholder, text)
        if resource is MUTATING_WEBHOOKS and admission.nvidia.overwrite_env:
            webhooks.append(_see_other_pods(webhooks[0]))
        yield resource, body


def _list_fillings(admission: AdmissionSettings) -> dict[str, str]:
    native = admission.nvidia.resource_count_name if admission.native_whole_cards else None
    return {
        _GPU_KEYS: _write_list(key for key in list_keys(admission) if key != native),
        _GPU_PREFIXES: _write_list(list_prefixes(admission)),
        _GPU_ANNOTATIONS: _write_list(list_annotations(admission)),
    }


def _choose_pods(webhook: dict[str, Any], admission: AdmissionSettings) -> None:
    """Narrow or widen which pods come to us, as the operator wants it."""
    if admission.native_whole_cards:
        (condition,) = webhook["matchConditions"]
        exception = write_exception(admission)
        condition["expression"] = f"({condition['expression']}) || ({exception})"
    if "vgpu-manager" in admission.dialects:
        _heed_vgpu_manager(webhook)
    if admission.excluded_namespaces:
        _leave_alone(webhook, admission.excluded_namespaces)


def _write_list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(quote, texts))}]"


def _write_unselected(selector: Mapping[str, Any]) -> str:
    """Return an expression for what a selector, of NotIn terms only, leaves out."""
    labels = "object.metadata.labels"
    terms = [
        f"{quote(term['key'])} in {labels} && "
        f"{labels}[{quote(term['key'])}] in {_write_list(term['values'])}"
        for term in selector["matchExpressions"]
    ]
    return f"(has({labels}) && ({' || '.join(f'({term})' for term in terms)}))"


def _leave_alone(webhook: dict[str, Any], namespaces: Iterable[str]) -> None:
    selector = webhook["namespaceSelector"]
    excluded = {"key": _NAMESPACE_NAME, "operator": "NotIn", "values": list(namespaces)}
    # A new selector: the file's anchor makes pods and namespaces share one.
    expressions = [*selector["matchExpressions"], excluded]
    webhook["namespaceSelector"] = {**selector, "matchExpressions": expressions}


def _heed_vgpu_manager(webhook: dict[str, Any]) -> None:
    """Let its users' label keep pods and namespaces away, too."""
    ignored = {"key": LABEL_VGPU_MANAGER_IGNORE, "operator": "NotIn", "values": ["true"]}
    for selector in ("namespaceSelector", "objectSelector"):
        terms = webhook[selector]["matchExpressions"]
        webhook[selector] = {"matchExpressions": [*terms, ignored]}


def _see_other_pods(webhook: Mapping[str, Any]) -> dict[str, Any]:
    """Return a second webhook, for the pods that the first one does not see.

    They only get an environment variable, so nobody's pod is kept out when it cannot be had.
    """
    (condition,) = webhook["matchConditions"]
    expression = f"!({condition['expression']})"
    return {
        **webhook,
        "name": f"other-{webhook['name']}",
        "failurePolicy": "Ignore",
        "timeoutSeconds": _OTHER_PODS_SECONDS,
        "matchConditions": [{"name": "has-no-gpu-keys", "expression": expression}],
    }


def _load(file: str) -> dict[str, Any]:
    text = files(__name__).joinpath(file).read_text(encoding="utf-8")
    body = yaml.safe_load(text)
    if not isinstance(body, Mapping):
        raise TypeError(f"{file} is not an object")
    return dict(body)
