"""ResourceClaims and ResourceClaimTemplates that name our class or carry our configuration."""

from typing import Any, Final

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.names import CLAIM_CONTROLLERS
from hami_dra.policy.charge import read_spec, sum_takes
from hami_dra.policy.claims import check_claim
from hami_dra.policy.fit import list_sizes, warn_unfit
from hami_dra.policy.limited import check_template
from hami_dra.webhook.mutate import Nodes
from hami_dra.webhook.quota import QuotaLedger
from hami_dra.webhook.review import Request, Verdict, deny, postpone

_SPEC_FIELDS: Final = {"ResourceClaim": "spec", "ResourceClaimTemplate": "spec.spec"}
_GROUP: Final = "resource.k8s.io"
_VERSION: Final = "v1"
_ALLOWED: Final = Verdict()


class ClaimReviewer:
    """Answers reviews of claims and templates."""

    def __init__(
        self,
        nodes: Nodes,
        ledger: QuotaLedger | None = None,
        *,
        allow_disable_control: bool = True,
    ) -> None:
        self._nodes = nodes
        self._ledger = ledger
        self._allow_disable_control = allow_disable_control

    async def review(self, request: Request) -> Verdict:
        """Refuse what could never work, or what the namespace's quotas have no room for.

        What no card can satisfy today is a warning. An update that leaves the spec as it is
        passes unseen: it may be the removal of a finalizer from a claim that is older than this
        check. Cancelling may leave a claim counted, see `QuotaLedger.charge`.
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
        name = f"{request.kind.kind} {request.namespace}/{request.object_name}"
        try:
            spec = _find_spec(request.object, field)
            if request.old_object is not None and spec == _find_spec(request.old_object, field):
                return _ALLOWED
            demands = []
            # What the claim controller makes was checked as a template.
            if request.user_info.username not in CLAIM_CONTROLLERS:
                demands = check_claim(
                    spec, field=field, allow_disable_control=self._allow_disable_control
                )
            if field == _SPEC_FIELDS["ResourceClaimTemplate"]:
                check_template(request.object)
            elif request.operation == "CREATE":
                await self._charge(request, request.object, spec)
        except UserError as error:
            return deny(f"{name}: {error}")
        except RetryError as error:
            return postpone(f"{name}: {error}")
        nodes = self._nodes()
        return Verdict(warnings=tuple(warn_unfit(demands, nodes)) if nodes is not None else ())

    async def _charge(self, request: Request, claim: dict[str, Any], spec: dict[str, Any]) -> None:
        if self._ledger is None or not self._ledger.limits(request.namespace):
            return
        largest_mib = max(list_sizes(self._nodes() or ()), default=None)
        uid = str((claim.get("metadata") or {}).get("uid", ""))
        wanted = {uid: sum_takes(read_spec(spec), largest_mib)}
        await self._ledger.charge(request.namespace, wanted, dry_run=bool(request.dry_run))


def _find_spec(item: dict[str, Any], field: str) -> dict[str, Any]:
    spec: Any = item
    for part in field.split("."):
        spec = spec.get(part) if isinstance(spec, dict) else None
    if not isinstance(spec, dict):
        raise UserError("is missing", field=field)
    return spec
