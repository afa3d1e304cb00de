"""Writes templates, each once.

The name says the content, so one that is known to exist need not be written again: replicas cost
no write. Knowledge is forgotten after a while, because a template may be deleted behind our back.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from weakref import WeakValueDictionary

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.quantity import parse_quantity
from hami_dra.kube import Api, ApiError, NotFoundError
from hami_dra.kube.objects import TEMPLATES
from hami_dra.service.clock import Clock

_REMEMBERED: Final = 16_384
_REMEMBER_SECONDS: Final = 300.0
_REFUSED: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
"""Another field manager holds a field, or the immutable spec is another one."""


class TemplateStore:
    """Makes sure that templates exist.

    Attributes:
        writes: Number of writes sent since the start.
    """

    def __init__(self, api: Api, clock: Clock) -> None:
        self.writes = 0
        self._api = api
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._writing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def ensure(self, namespace: str, template: Mapping[str, Any]) -> None:
        """Make the template exist. Idempotent; of several at once, one writes and the others wait.

        Raises:
            UserError: Another object with other content has the name, or the namespace must not
                have the template: a quota, a policy, or its deletion.
            RetryError: The API server cannot do it now.
            ApiError: It refuses us, which an administrator has to mend.
        """
        name = str(template["metadata"]["name"])
        key = namespace, name
        if self._is_known(key):
            return
        # The first pods of a workload arrive together; each would open a connection to write.
        lock = self._writing.get(key)
        if lock is None:
            lock = self._writing[key] = asyncio.Lock()
        async with lock:
            if not self._is_known(key):
                await self._write(namespace, name, template)
                self._remember(key)

    def _is_known(self, key: tuple[str, str]) -> bool:
        known = self._known.get(key, float("-inf")) > self._clock.monotonic()
        if known:
            self._known.move_to_end(key)
        return known

    def _remember(self, key: tuple[str, str]) -> None:
        self._known[key] = self._clock.monotonic() + _REMEMBER_SECONDS
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def _write(self, namespace: str, name: str, template: Mapping[str, Any]) -> None:
        try:
            stored = await self._apply(namespace, name, template)
        except ApiError as error:
            if error.retryable:
                raise RetryError(f"cannot write ResourceClaimTemplate {name}: {error}") from error
            if error.unauthorized:
                raise
            raise UserError(
                f"its GPUs need ResourceClaimTemplate {namespace}/{name}, which the API server "
                f"refuses: {error}"
            ) from error
        if not _same(stored.get("spec"), template["spec"]):
            raise UserError(
                f"ResourceClaimTemplate {namespace}/{name} exists with other content; its name is "
                "reserved for templates made by admission: delete or rename it"
            )

    async def _apply(
        self, namespace: str, name: str, template: Mapping[str, Any]
    ) -> dict[str, Any]:
        self.writes += 1
        try:
            return await self._api.apply(TEMPLATES, name, template, namespace=namespace)
        except ApiError as error:
            if error.status not in _REFUSED:
                raise
            refusal = error
        try:
            return await self._api.get(TEMPLATES, name, namespace=namespace)
        except NotFoundError:
            # Nobody has the name: what it said was about the template itself.
            raise refusal from None


def _same(stored: Any, wanted: Any) -> bool:
    """Compare two JSON values; quantities by value, since the API server rewrites them."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return stored.keys() == wanted.keys() and all(
            _same(stored[key], wanted[key]) for key in wanted
        )
    if isinstance(stored, list) and isinstance(wanted, list):
        return len(stored) == len(wanted) and all(map(_same, stored, wanted))
    if isinstance(stored, str) and isinstance(wanted, str) and stored != wanted:
        try:
            return parse_quantity(stored) == parse_quantity(wanted)
        except ValueError:
            return False
    return bool(stored == wanted)
