"""ResourceClaims and ResourceClaimTemplates that name our class or carry our configuration."""

from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.policy.claims import check_claim
from hami_dra.policy.fit import warn_unfit
from hami_dra.webhook.mutate import Nodes
from hami_dra.webhook.review import Request, Verdict, deny

_SPEC_FIELDS: Final = {"ResourceClaim": "spec", "ResourceClaimTemplate": "spec.spec"}
_GROUP: Final = "resource.k8s.io"
_VERSION: Final = "v1"
_ALLOWED: Final = Verdict()


class ClaimReviewer:
    """Answers reviews of claims and templates."""

    def __init__(self, nodes: Nodes, *, allow_disable_control: bool = True) -> None:
        self._nodes = nodes
        self._allow_disable_control = allow_disable_control

    async def review(self, request: Request) -> Verdict:
        """Refuse what could never work; warn about what no card can satisfy today.

        An update that leaves the spec as it is passes unseen: it may be the removal of
        a finalizer from a claim that is older than this check.
        """
        if request.operation not in {"CREATE", "UPDATE"} or request.object is None:
            return _ALLOWED
        field = _SPEC_FIELDS.get(request.kind.kind)
        if field is None or (request.kind.group, request.kind.version) != (_GROUP, _VERSION):
            kind = request.kind
            return deny(
                f"this address reviews {_GROUP}/{_VERSION} claims and templates, not "
                f"{kind.group}/{kind.version} {kind.kind}"
            )
        try:
            spec = _find_spec(request.object, field)
            if request.old_object is not None and spec == _find_spec(request.old_object, field):
                return _ALLOWED
            demands = check_claim(
                spec, field=field, allow_disable_control=self._allow_disable_control
            )
        except UserError as error:
            name = f"{request.kind.kind} {request.namespace}/{request.object_name}"
            return deny(f"{name}: {error}")
        nodes = self._nodes()
        return Verdict(warnings=tuple(warn_unfit(demands, nodes)) if nodes is not None else ())


def _find_spec(item: dict[str, Any], field: str) -> dict[str, Any]:
    spec: Any = item
    for part in field.split("."):
        spec = spec.get(part) if isinstance(spec, dict) else None
    if not isinstance(spec, dict):
        raise UserError("is missing", field=field)
    return spec
