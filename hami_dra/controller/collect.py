"""One term of leadership: unused templates go, missing ones come back, quotas are counted."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hami_dra.contract.names import LABEL_MANAGED_BY, MANAGED_BY
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.controller.metrics import ControllerMetrics
from hami_dra.controller.quota import QuotaCounter
from hami_dra.controller.restore import Restorer
from hami_dra.kube import Api, ApiError, ConflictError, Informer, NotFoundError
from hami_dra.kube.inventory import Inventory
from hami_dra.kube.objects import PODS, TEMPLATES
from hami_dra.policy.charge import Takes
from hami_dra.policy.collection import (
    Key,
    PodUse,
    StoredTemplate,
    find_unused,
    read_template,
    read_use,
)
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

DEFAULT_AGE_SECONDS: Final = 3600.0
_SWEEP_SECONDS: Final = (1.0, 60.0)
_GRACE_SECONDS: Final = 0.5


@dataclass(frozen=True)
class CollectorStatistics:
    """What a collector knows and has done.

    Attributes:
        templates: Those with a name of admission's.
        pods: Those that refer to one.
        missing: Templates that pods wait for.
        deleted: Since the start of the term.
    """

    templates: int
    pods: int
    missing: int
    deleted: int


class Collector:
    """Watches templates and pods for as long as this process leads.

    Disuse is what this object has seen: a new leader starts to count anew.
    """

    def __init__(
        self,
        api: Api,
        clock: Clock,
        metrics: ControllerMetrics,
        *,
        settings: AdmissionSettings = DEFAULT_SETTINGS,
        age_seconds: float = DEFAULT_AGE_SECONDS,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        """Prepare; `run` starts.

        Args:
            api: Where everything is.
            clock: Tells how long a template was unused.
            metrics: Counts what is done.
            settings: The operator's, the same as the webhook's.
            age_seconds: How old and for how long unused a template must be to go.
            grace_seconds: See `Restorer`.
        """
        self._api = api
        self._clock = clock
        self._metrics = metrics
        self._age_seconds = age_seconds
        self._deleted = 0
        self._idle_since: dict[Key, float] = {}
        self._inventory = Inventory(api)
        self._quotas = QuotaCounter(
            api,
            clock,
            metrics,
            settings=settings.nvidia,
            inventory=self._inventory,
            templates=self._find_takes,
        )
        self._templates = Informer(
            api,
            TEMPLATES,
            label_selector=f"{LABEL_MANAGED_BY}={MANAGED_BY}",
            keep=_keep_template,
            handler=self._hear_template,
        )
        # What waits for its claim must not be less than the leader before knew: it is counted.
        self._pods = Informer(api, PODS, keep=_keep_pod, handler=self._hear_pod)
        self._restorer = Restorer(
            api,
            clock,
            metrics,
            settings=settings,
            templates=self._templates.store.keys(),
            nodes=self._inventory.nodes,
            grace_seconds=grace_seconds,
        )

    def statistics(self) -> CollectorStatistics:
        """Return counts as of now."""
        return CollectorStatistics(
            templates=len(self._templates.store),
            pods=len(self._pods.store),
            missing=self._restorer.missing,
            deleted=self._deleted,
        )

    async def run(self) -> None:
        """Watch, delete, make again and count until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch(), name="collect-watch")
            await self.wait_synced()
            _log.info("collect.started", templates=len(self._templates.store))
            group.create_task(self._restorer.run(), name="collect-restore")
            group.create_task(self._quotas.run(), name="collect-quotas")
            group.create_task(self._watch_cards(), name="collect-cards")
            group.create_task(self._sweep_forever(), name="collect-sweep")

    async def watch(self) -> None:
        """Only watch, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._inventory.run(), name="watch-slices")
            group.create_task(self._templates.run(), name="watch-templates")
            group.create_task(self._pods.run(), name="watch-pods")

    async def wait_synced(self) -> None:
        """Return once templates and pods are known."""
        await self._templates.synced.wait()
        await self._pods.synced.wait()

    async def restore(self) -> float | None:
        """Make missing templates again, see `Restorer.restore`."""
        return await self._restorer.restore()

    async def sweep(self) -> None:
        """Delete what is unused; trouble with the API server leaves the rest for the next time."""
        now = self._clock.monotonic()
        used = {key for item in self._pods.store.values() for key in item["use"].templates}
        templates = [item["template"] for item in self._templates.store.values()]
        self._idle_since = {
            template.key: self._idle_since.get(template.key, now)
            for template in templates
            if template.key not in used
        }
        self._metrics.templates.labels("no").set(len(self._idle_since))
        self._metrics.templates.labels("yes").set(len(templates) - len(self._idle_since))
        unused: dict[str, list[StoredTemplate]] = defaultdict(list)
        for template in find_unused(
            templates,
            used,
            self._idle_since,
            now=now,
            wall=self._clock.wall(),
            age_seconds=self._age_seconds,
        ):
            unused[template.key[0]].append(template)
        try:
            for namespace, found in unused.items():
                await self._delete_all(namespace, found)
        except ApiError as error:
            self._metrics.deletions.labels("failed").inc()
            _log.warning("collect.postponed", error=str(error))

    async def _sweep_forever(self) -> None:
        low, high = _SWEEP_SECONDS
        while True:
            await self.sweep()
            await asyncio.sleep(min(max(self._age_seconds / 4, low), high))

    async def _watch_cards(self) -> None:
        """Tell those to whom other cards make a difference."""
        while True:
            self._inventory.changed.clear()
            self._restorer.wake()  # templates of percentages
            self._quotas.note_cards()
            await self._inventory.changed.wait()

    async def _delete_all(self, namespace: str, templates: list[StoredTemplate]) -> None:
        # A watch may lag behind; what is deleted on its word would be missed by a pod.
        pods, _ = await self._api.list(PODS, namespace=namespace)
        used = {key for pod in pods if (use := read_use(pod)) for key in use.templates}
        for template in templates:
            if template.key in used:
                self._idle_since.pop(template.key, None)
            else:
                await self._delete(template)

    async def _delete(self, template: StoredTemplate) -> None:
        namespace, name = template.key
        try:
            await self._api.delete(
                TEMPLATES,
                name,
                namespace=namespace,
                uid=template.uid,
                resource_version=template.resource_version,
            )
        except (ConflictError, NotFoundError) as error:
            self._metrics.deletions.labels("kept").inc()
            self._idle_since.pop(template.key, None)
            _log.info("template.kept", namespace=namespace, template=name, error=str(error))
            return
        self._deleted += 1
        self._metrics.deletions.labels("deleted").inc()
        _log.info("template.deleted", namespace=namespace, template=name)

    def _find_takes(self, key: Key) -> Takes | None:
        item = self._templates.store.get(key)
        return item["template"].takes if item and item["template"].own else None

    def _hear_template(self, event: str, item: dict[str, Any]) -> None:
        del item
        if event == "DELETED":
            self._restorer.wake()

    def _hear_pod(self, event: str, item: dict[str, Any]) -> None:
        use: PodUse = item["use"]
        # Also for a pod that is gone again before the next sweep.
        for key in use.templates:
            self._idle_since.pop(key, None)
        self._restorer.note(use, gone=event == "DELETED")
        self._quotas.note_pod(use, gone=event == "DELETED")


def _keep_template(body: dict[str, Any]) -> dict[str, Any] | None:
    template = read_template(body)
    return None if template is None else {**_identify(body), "template": template}


def _keep_pod(pod: dict[str, Any]) -> dict[str, Any] | None:
    use = read_use(pod)
    return None if use is None else {**_identify(pod), "use": use}


def _identify(body: dict[str, Any]) -> dict[str, Any]:
    """Return what an informer needs of an object."""
    metadata = body["metadata"]
    names = ("namespace", "name", "resourceVersion")
    return {"metadata": {name: metadata[name] for name in names if name in metadata}}
