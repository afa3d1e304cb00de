"""Pods: the claim that stands in for their GPU keys."""

import itertools
import random
from collections.abc import Callable
from typing import Any, Final

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.kube import ApiError
from hami_dra.policy.fit import NodeCards, demands_of_shares, warn_unfit
from hami_dra.policy.limited import mark_limited
from hami_dra.policy.podcore import take_core
from hami_dra.policy.podpatch import diff
from hami_dra.webhook.planmemo import PlanMemo
from hami_dra.webhook.review import Request, Verdict, deny, fail, postpone
from hami_dra.webhook.templatestore import TemplateStore

_ALLOWED: Final = Verdict()

Nodes = Callable[[], frozenset[NodeCards] | None]
"""Cards by node, ``None`` while not known."""
Limits = Callable[[str], bool]
"""Whether a namespace limits GPUs."""


class PodReviewer:
    """Answers reviews of pods that are being created."""

    def __init__(
        self,
        templates: TemplateStore,
        nodes: Nodes,
        settings: AdmissionSettings = DEFAULT_SETTINGS,
        limits: Limits = lambda _: False,
    ) -> None:
        self._templates = templates
        self._limits = limits
        self._plans = PlanMemo(settings)
        # From anywhere, so that the replicas of the webhook do not march in step.
        self._rotation = itertools.count(random.randrange(1 << 16))  # noqa: S311 - no secret
        self._nodes = nodes

    async def review(self, request: Request) -> Verdict:
        """Rewrite a pod with GPU keys, and mark it where GPUs are limited; let every other pass.

        Writes at most one template, none on a dry run. Cancellation may leave a template that
        nobody uses, which is harmless.
        """
        if request.operation != "CREATE" or request.object is None:
            return _ALLOWED
        if request.kind.kind != "Pod":
            return deny(f"this address reviews pods, not {request.kind.kind or 'nothing'}")
        try:
            return await self._rewrite(request, take_core(request.object))
        except UserError as error:
            return deny(f"Pod {request.namespace}/{request.object_name}: {error}")
        except RetryError as error:
            return postpone(str(error))
        except ApiError as error:
            return fail(f"cannot write the pod's ResourceClaimTemplate: {error}")

    async def _rewrite(self, request: Request, pod: dict[str, Any]) -> Verdict:
        nodes = self._nodes()
        plan = self._plans.plan(pod, nodes, next(self._rotation))
        rewritten = pod if plan is None else plan.pod
        marked = mark_limited(rewritten) if self._limits(request.namespace) else rewritten
        if plan is None:
            patch = diff(pod, marked)
            return Verdict(result="patched", patch=tuple(patch)) if patch else _ALLOWED
        if plan.template is not None and not request.dry_run:
            await self._templates.ensure(request.namespace, plan.template)
        one_card = plan.request.placement.one_card
        demands = demands_of_shares(plan.request.shares, one_card=one_card)
        unfit = warn_unfit(demands, nodes) if nodes is not None else []
        patch = plan.patch if marked is rewritten else diff(pod, marked)
        return Verdict(result="patched", patch=tuple(patch), warnings=(*plan.warnings, *unfit))
