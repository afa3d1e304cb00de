"""Templates that pods wait for, made again.

A template may be missing because it was deleted while its pod was being admitted, or by a person.
kube-controller-manager cannot make the pod's claim without it, and would try for ever.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import structlog

from hami_dra.contract.errors import HamiDraError, RetryError, UserError
from hami_dra.contract.names import FIELD_MANAGER
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.controller.metrics import ControllerMetrics
from hami_dra.kube import Api, ApiError
from hami_dra.kube.objects import TEMPLATES
from hami_dra.kube.podevents import PodEvents
from hami_dra.policy.collection import Key, PodUse, rebuild_template
from hami_dra.policy.fit import NodeCards
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_BACKOFF_SECONDS: Final = (1.0, 60.0)
_MOST_PODS: Final = 8
"""Pods of one template say the same, unless somebody wrote their annotations by hand."""

Nodes = Callable[[], Collection[NodeCards] | None]
"""Cards by node, ``None`` while not known."""


@dataclass(slots=True)
class _Missing:
    """A template that pods wait for, what was tried, and which pods were told that it is lost."""

    due_at: float
    delay_seconds: float = _BACKOFF_SECONDS[0]
    told: str = ""
    told_pods: set[str] = field(default_factory=set)


class Restorer:
    """Makes missing templates again."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        metrics: ControllerMetrics,
        *,
        settings: AdmissionSettings,
        templates: Collection[Key],
        nodes: Nodes,
        grace_seconds: float,
    ) -> None:
        """Prepare; `run` starts.

        Args:
            api: Where the templates are.
            clock: Measures the grace and the time between attempts.
            metrics: Counts results.
            settings: The operator's, the same as the webhook's.
            templates: Those that exist; somebody else keeps it up to date and calls `wake`.
            nodes: See `Nodes`.
            grace_seconds: How long a template may be missing before it is made: pods and
                templates are watched apart, so that a pod may be seen before its template.
        """
        self._api = api
        self._clock = clock
        self._events = PodEvents(api, clock, reporter=f"{FIELD_MANAGER}-controller")
        self._metrics = metrics
        self._settings = settings
        self._templates = templates
        self._nodes = nodes
        self._grace_seconds = grace_seconds
        self._waiting: dict[Key, dict[tuple[str, str], PodUse]] = {}
        self._awaits: dict[tuple[str, str], Key] = {}
        self._missing: dict[Key, _Missing] = {}
        self._moved = asyncio.Event()

    @property
    def missing(self) -> int:
        """Number of templates that pods wait for, as of the last look."""
        return len(self._missing)

    def note(self, use: PodUse, *, gone: bool = False) -> None:
        """Hear what became of a pod."""
        pod = use.namespace, use.name
        key = self._awaits.pop(pod, None)
        if key is not None:
            self._waiting[key].pop(pod)
            if not self._waiting[key]:
                del self._waiting[key]
        if use.awaits and not gone:
            key = use.namespace, use.awaits
            self._awaits[pod] = key
            self._waiting.setdefault(key, {})[pod] = use
            if key not in self._templates:
                self._moved.set()

    def wake(self) -> None:
        """Look again soon: templates or cards have changed."""
        self._moved.set()

    async def run(self) -> None:
        """Make what is missing until cancelled. Start it when pods and templates are known."""
        while True:
            self._moved.clear()
            delay_seconds = await self.restore()
            try:
                async with asyncio.timeout(delay_seconds):
                    await self._moved.wait()
            except TimeoutError:
                pass

    async def restore(self) -> float | None:
        """Make what is missing and due; return after how many seconds more is, if ever.

        Cancelling may leave a template made, which is what was wanted.
        """
        now = self._clock.monotonic()
        self._missing = {
            key: self._missing.get(key) or _Missing(now + self._grace_seconds)
            for key in self._waiting
            if key not in self._templates
        }
        self._metrics.missing.set(len(self._missing))
        for key, missing in list(self._missing.items()):
            if missing.due_at <= now:
                await self._restore_one(key, missing)
        if not self._missing:
            return None
        due_at = min(missing.due_at for missing in self._missing.values())
        return max(due_at - self._clock.monotonic(), 0.0)

    async def _restore_one(self, key: Key, missing: _Missing) -> None:
        namespace, name = key
        # Copied: pods come and go while we wait for the API server.
        uses = list(islice(self._waiting.get(key, {}).values(), _MOST_PODS))
        if not uses:
            return
        error: HamiDraError
        try:
            template = self._rebuild(uses)
            await self._api.apply(TEMPLATES, name, template, namespace=namespace)
        except UserError as caught:
            error, result = caught, "changed"
        except (RetryError, ApiError) as caught:
            error, result = caught, "failed"
        else:
            self._metrics.restorations.labels("restored").inc()
            _log.info("template.restored", namespace=namespace, template=name, pod=uses[0].name)
            self._postpone(missing)
            return
        self._metrics.restorations.labels(result).inc()
        if str(error) != missing.told:
            missing.told = str(error)
            _log.warning(
                "template.not_restored",
                namespace=namespace,
                template=name,
                pod=uses[0].name,
                error=missing.told,
            )
        if result == "changed":
            await self._tell(uses, missing, str(error))
        self._postpone(missing)

    async def _tell(self, uses: list[PodUse], missing: _Missing, error: str) -> None:
        """Tell each pod once; these are at most eight for each attempt, and attempts grow rare."""
        for use in uses:
            if use.uid not in missing.told_pods:
                missing.told_pods.add(use.uid)
                await self._events.warn(
                    use,
                    reason="ResourceClaimTemplateLost",
                    action="RestoreTemplate",
                    note=f"cannot make ResourceClaimTemplate {use.awaits} again: {error}",
                )

    def _rebuild(self, uses: list[PodUse]) -> Mapping[str, Any]:
        """Return the template to which the first of the pods leads that does.

        Raises:
            UserError: None of them does.
            RetryError: The published cards are needed and not known yet.
        """
        for use in uses[:-1]:
            try:
                return rebuild_template(use, self._settings, self._nodes())
            except UserError:
                continue
        return rebuild_template(uses[-1], self._settings, self._nodes())

    def _postpone(self, missing: _Missing) -> None:
        missing.due_at = self._clock.monotonic() + missing.delay_seconds
        missing.delay_seconds = min(missing.delay_seconds * 2, _BACKOFF_SECONDS[1])
