"""Pods whose namespace limits GPUs: their shares are counted before they are stored.

Only here are the pod's UID and its final form known; the API server asks only about pods that
`mutate` marked.
"""

from collections import OrderedDict
from typing import Any, Final

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.kube import Api, ApiError, NotFoundError
from hami_dra.kube.objects import TEMPLATES
from hami_dra.policy.charge import Takes, name_pod_claim, read_spec, sum_takes
from hami_dra.policy.collection import read_use, rebuild_template
from hami_dra.policy.fit import list_sizes
from hami_dra.policy.limited import list_own_claims
from hami_dra.policy.templates import names_content
from hami_dra.webhook.mutate import Nodes
from hami_dra.webhook.quota import QuotaLedger
from hami_dra.webhook.review import Request, Verdict, deny, postpone

_ALLOWED: Final = Verdict()
_REMEMBERED: Final = 4096


class PodChargeReviewer:
    """Answers reviews of pods that are about to be stored."""

    def __init__(
        self, api: Api, ledger: QuotaLedger, nodes: Nodes, settings: AdmissionSettings
    ) -> None:
        self._api = api
        self._ledger = ledger
        self._nodes = nodes
        self._settings = settings
        self._known: OrderedDict[str, Takes] = OrderedDict()

    async def review(self, request: Request) -> Verdict:
        """Count a pod's shares, or refuse it; a dry run counts nothing."""
        pod = request.object
        if (
            request.operation != "CREATE"
            or pod is None
            or not self._ledger.limits(request.namespace)
        ):
            return _ALLOWED
        try:
            uid = str((pod.get("metadata") or {}).get("uid", ""))
            largest_mib = max(list_sizes(self._nodes() or ()), default=None)
            wanted = {
                name_pod_claim(uid, entry): sum_takes(
                    await self._read_template(request.namespace, template, pod), largest_mib
                )
                for entry, template in list_own_claims(pod).items()
            }
            if wanted:
                await self._ledger.charge(request.namespace, wanted, dry_run=bool(request.dry_run))
        except UserError as error:
            return deny(f"Pod {request.namespace}/{request.object_name}: {error}")
        except RetryError as error:
            return postpone(str(error))
        return _ALLOWED

    async def _read_template(self, namespace: str, name: str, pod: dict[str, Any]) -> Takes:
        """Return what a claim from a template of admission's may take.

        The name says the content, whoever holds it and whether or not it is stored at this moment.

        Raises:
            UserError: Something else has the name.
            RetryError: It cannot be found out now.
        """
        takes = self._known.get(name)
        if takes is not None:
            self._known.move_to_end(name)
            return takes
        try:
            stored = await self._api.get(TEMPLATES, name, namespace=namespace)
            if not names_content(name, stored.get("spec") or {}):
                raise UserError(
                    f"ResourceClaimTemplate {namespace}/{name} exists with other content; its name "
                    "is reserved for templates made by admission: delete or rename it"
                )
        except NotFoundError:
            stored = self._rebuild(name, pod)
        except ApiError as error:
            raise RetryError(f"cannot read ResourceClaimTemplate {name}: {error}") from error
        takes = read_spec(stored["spec"].get("spec") or {})
        self._known[name] = takes
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return takes

    def _rebuild(self, name: str, pod: dict[str, Any]) -> dict[str, Any]:
        """Return a template that is not stored: on a dry run it never is."""
        use = read_use(pod)
        if use is None or use.awaits != name:
            raise RetryError(f"ResourceClaimTemplate {name} does not exist")
        try:
            return rebuild_template(use, self._settings, self._nodes())
        except UserError as error:
            raise RetryError(f"ResourceClaimTemplate {name} does not exist: {error}") from error
