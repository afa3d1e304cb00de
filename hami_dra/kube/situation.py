"""Reads everything that an explanation of a pod's claims is made of, and changes nothing."""

from typing import Any, Final

from hami_dra.contract.settings import AdmissionSettings
from hami_dra.kube.errors import ApiError, NotFoundError
from hami_dra.kube.objects import (
    CLAIMS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    NODES,
    PODS,
    SLICES,
    TEMPLATES,
    Api,
    Resource,
)
from hami_dra.policy.explain import PodClaim, Situation
from hami_dra.policy.extended import describe_claim
from hami_dra.policy.untouched import explain_kept_keys, find_kept_keys

_WEBHOOK: Final = "hami-dra"
_FORBIDDEN: Final = 403

Object = dict[str, Any]


class SituationReader:
    """Reads with the rights of whoever asks; what they may not read becomes a note."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._notes: list[str] = []

    async def read_pod(self, namespace: str, name: str) -> Situation:
        """Return the situation of a pod.

        Raises:
            ApiError: The pod, or what it asks for, cannot be read.
        """
        pod = await self._api.get(PODS, name, namespace=namespace)
        made = {
            entry["name"]: entry.get("resourceClaimName")
            for entry in (pod.get("status") or {}).get("resourceClaimStatuses") or ()
        }
        claims = [
            await self._read_entry(namespace, entry, made)
            for entry in (pod.get("spec") or {}).get("resourceClaims") or ()
        ]
        claims += await self._read_extended(namespace, pod)
        return await self._read_rest(f"Pod {namespace}/{name}", pod, claims, namespace)

    async def read_claim(self, namespace: str, name: str) -> Situation:
        """Return the situation of a claim without a pod.

        Raises:
            ApiError: The claim cannot be read.
        """
        claim = await self._api.get(CLAIMS, name, namespace=namespace)
        found = _describe_claim(name, name, claim)
        return await self._read_rest(f"ResourceClaim {namespace}/{name}", None, [found], namespace)

    async def explain_keys(self, pod: Object, settings: AdmissionSettings) -> str:
        """Return why a pod still has GPU keys, "" if it has none."""
        keys = find_kept_keys(pod, settings)
        if not keys:
            return ""
        space = pod["metadata"]["namespace"]
        namespace = await self._get(NAMESPACES, str(space))
        webhook = await self._get(MUTATING_WEBHOOKS, _WEBHOOK)
        reason = explain_kept_keys(pod, namespace, webhook)
        return f"it still has {', '.join(keys)}, so admission did not rewrite it: {reason}"

    async def _read_entry(
        self, namespace: str, entry: Object, made: dict[str, str | None]
    ) -> PodClaim:
        name = str(entry["name"])
        claim_name = entry.get("resourceClaimName") or made.get(name)
        if claim_name:
            claim = await self._get(CLAIMS, claim_name, namespace=namespace)
            if claim is None:
                return PodClaim(name, f"ResourceClaim {claim_name} does not exist", None)
            return _describe_claim(name, claim_name, claim)
        template_name = str(entry.get("resourceClaimTemplateName", ""))
        if name in made:
            return PodClaim(name, "no claim is needed", {})
        template = await self._get(TEMPLATES, template_name, namespace=namespace)
        if template is None:
            return PodClaim(name, f"ResourceClaimTemplate {template_name} does not exist", None)
        origin = f"not made yet, from ResourceClaimTemplate {template_name}"
        return PodClaim(name, origin, template["spec"]["spec"])

    async def _read_extended(self, namespace: str, pod: Object) -> list[PodClaim]:
        """Return the claim for extended resources, which the scheduler makes by itself."""
        status = (pod.get("status") or {}).get("extendedResourceClaimStatus") or {}
        name = status.get("resourceClaimName")
        claim = await self._get(CLAIMS, name, namespace=namespace) if name else None
        if claim is not None:
            return [_describe_claim("extended resources", str(name), claim)]
        spec = describe_claim(pod, await self._list(DEVICE_CLASSES))
        if spec is None:
            return []
        return [PodClaim("extended resources", "made by the scheduler when it binds the pod", spec)]

    async def _read_rest(
        self, subject: str, pod: Object | None, claims: list[PodClaim], namespace: str
    ) -> Situation:
        needed = any(claim.allocation is None for claim in claims)
        slices = await self._list(SLICES) if needed else []
        nodes = await self._list(NODES) if needed else []
        if needed and not nodes:
            names = {item["spec"].get("nodeName") for item in slices}
            nodes = [{"metadata": {"name": name}} for name in sorted(filter(None, names))]
        taken = await self._list(CLAIMS, otherwise=namespace) if needed else []
        classes = await self._list(DEVICE_CLASSES) if needed else []
        rules = await self._list(DEVICE_TAINT_RULES) if needed else []
        return Situation(
            subject=subject,
            pod=pod,
            claims=tuple(claims),
            nodes=tuple(nodes),
            slices=tuple(slices),
            all_claims=tuple(taken),
            classes={str(item["metadata"]["name"]): item for item in classes},
            taint_rules=tuple(rules),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    async def _get(
        self, resource: Resource, name: str, *, namespace: str | None = None
    ) -> Object | None:
        try:
            return await self._api.get(resource, name, namespace=namespace)
        except NotFoundError:
            return None
        except ApiError as error:
            if error.status != _FORBIDDEN:
                raise
            self._notes.append(f"you may not read {resource.kind} {name}")
            return None

    async def _list(self, resource: Resource, otherwise: str = "") -> list[Object]:
        """Return all objects of a kind; of one namespace only, if one may not read all."""
        try:
            return (await self._api.list(resource))[0]
        except NotFoundError:
            return []  # an older API server
        except ApiError as error:
            if error.status != _FORBIDDEN:
                raise
        self._notes.append(f"you may not list {resource.plural} of the cluster")
        return (await self._api.list(resource, namespace=otherwise))[0] if otherwise else []


def _describe_claim(name: str, claim_name: str, claim: Object) -> PodClaim:
    allocation = (claim.get("status") or {}).get("allocation")
    return PodClaim(name, f"ResourceClaim {claim_name}", claim["spec"], allocation)
