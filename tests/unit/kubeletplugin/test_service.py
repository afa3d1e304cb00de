"""The kubelet's two sockets, called as the kubelet calls them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hami_dra.contract.errors import FatalError, RetryError, UserError
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.registration import Registration
from hami_dra.kubeletplugin.service import VERSIONS, ClaimRef, DraService, PreparedDevice
from hami_dra.testing.fakekubelet import FakeClaim, FakeKubelet

DRIVER = "gpu.example.com"


class Handler:
    """Prepares what it is told to; blocks while `gate` is not set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.calls: list[str] = []
        self.running = 0
        self.most_running = 0
        self.faults: list[Exception] = []

    async def prepare(self, claim: ClaimRef) -> Sequence[PreparedDevice]:  # noqa: D102 - the protocol's
        self.calls.append(claim.uid)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.entered.set()
        try:
            await self.gate.wait()
            if claim.uid == "bad":
                raise UserError("must not be negative", field="spec.x")
            if claim.uid == "bug":
                raise KeyError("oops")
            if self.faults:
                raise self.faults.pop()
        finally:
            self.running -= 1
        return [
            PreparedDevice("gpu", "pool", "gpu-0", ("a/b=c", "d/e=f"), f"share-{claim.uid}"),
            PreparedDevice("whole", "pool", "gpu-1", (), None),
        ]

    async def unprepare(self, claim: ClaimRef) -> None:  # noqa: D102 - the protocol's
        self.calls.append(f"-{claim.uid}")


@asynccontextmanager
async def serving(
    base: Path, handler: Handler, *, budget_seconds: float = 5.0
) -> AsyncIterator[tuple[DraService, list[str | None]]]:
    """Serve both sockets below a directory."""
    socket = base / "plugins" / DRIVER / "dra.sock"
    statuses: list[str | None] = []
    service = DraService(
        socket=socket, handler=handler, locks=ClaimLocks(), budget_seconds=budget_seconds
    )
    registration = Registration(
        socket=base / "plugins_registry" / f"{DRIVER}-reg.sock",
        driver=DRIVER,
        endpoint=socket,
        versions=VERSIONS,
        on_status=statuses.append,
    )
    await service.start()
    await registration.start()
    try:
        yield service, statuses
    finally:
        await registration.stop()
        await service.stop(0.2)


async def test_the_kubelet_registers_the_plugin(base: Path) -> None:
    async with serving(base, Handler()) as (_, statuses):
        info = await FakeKubelet(base).register(DRIVER)

        assert (info.type, info.name) == ("DRAPlugin", DRIVER)
        assert list(info.supported_versions) == ["v1.DRAPlugin", "v1beta1.DRAPlugin"]
        assert info.endpoint == str(base / "plugins" / DRIVER / "dra.sock")
        assert statuses == [None]

    assert FakeKubelet(base).sockets() == []
    assert not (base / "plugins" / DRIVER / "dra.sock").exists()


async def test_a_refusal_is_passed_on(base: Path) -> None:
    async with serving(base, Handler()) as (_, statuses):
        await FakeKubelet(base, refusal="already registered").register(DRIVER)

    assert statuses == ["the kubelet refused the plugin: already registered"]


async def test_one_bad_claim_does_not_hurt_the_others(base: Path) -> None:
    claims = [FakeClaim("one", "a"), FakeClaim("bad", "b"), FakeClaim("bug", "c")]
    async with serving(base, Handler()) as (service, _):
        kubelet = FakeKubelet(base)
        info = await kubelet.register(DRIVER)
        answers = await kubelet.prepare(info.endpoint, *claims)

        first, second = answers["one"].devices
        assert (first.pool_name, first.device_name) == ("pool", "gpu-0")
        assert list(first.request_names) == ["gpu"]
        assert list(first.cdi_device_ids) == ["a/b=c", "d/e=f"]
        assert first.share_id == "share-one"
        assert not second.HasField("share_id")
        assert answers["bad"].error == "spec.x: must not be negative"
        assert "internal error" in answers["bug"].error
        statistics = service.statistics()
        assert (statistics.prepared, statistics.failed) == (1, 2)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_kubelet_of_either_version_is_served(base: Path, version: str) -> None:
    handler = Handler()
    async with serving(base, handler):
        kubelet = FakeKubelet(base, knows=(version,))
        info = await kubelet.register(DRIVER)

        answers = await kubelet.prepare(info.endpoint, FakeClaim("one", "a"))
        assert answers["one"].devices[0].share_id == "share-one"
        assert await kubelet.unprepare(info.endpoint, FakeClaim("one", "a")) == {"one": ""}
    assert handler.calls == ["one", "-one"]


async def test_every_claim_of_an_unprepare_is_answered(base: Path) -> None:
    async with serving(base, Handler()):
        kubelet = FakeKubelet(base)
        info = await kubelet.register(DRIVER)

        answers = await kubelet.unprepare(info.endpoint, FakeClaim("x", "a"), FakeClaim("y", "b"))

    assert answers == {"x": "", "y": ""}


async def test_get_info_answers_while_prepare_blocks(base: Path) -> None:
    handler = Handler()
    handler.gate.clear()
    async with serving(base, handler):
        kubelet = FakeKubelet(base)
        info = await kubelet.register(DRIVER)
        blocked = asyncio.create_task(kubelet.prepare(info.endpoint, FakeClaim("one", "a")))
        await handler.entered.wait()

        async with asyncio.timeout(1):
            await kubelet.ask(base / "plugins_registry" / f"{DRIVER}-reg.sock")
        assert not blocked.done()
        handler.gate.set()
        assert (await blocked)["one"].error == ""


async def test_one_claim_is_worked_on_by_one_call_at_a_time(base: Path) -> None:
    handler = Handler()
    async with serving(base, handler):
        kubelet = FakeKubelet(base)
        info = await kubelet.register(DRIVER)
        claim = FakeClaim("one", "a")

        await asyncio.gather(*(kubelet.prepare(info.endpoint, claim) for _ in range(5)))

    assert handler.calls == ["one"] * 5
    assert handler.most_running == 1


async def test_transient_faults_are_retried_inside_the_call(base: Path) -> None:
    handler = Handler()
    handler.faults = [RetryError("not yet"), RetryError("not yet")]
    async with serving(base, handler):
        kubelet = FakeKubelet(base)
        info = await kubelet.register(DRIVER)

        answers = await kubelet.prepare(info.endpoint, FakeClaim("one", "a"))

    assert answers["one"].error == ""
    assert len(handler.calls) == 3


async def test_a_fault_that_stays_is_the_claims_error_after_the_budget(base: Path) -> None:
    handler = Handler()
    handler.faults = [RetryError(f"attempt {i}") for i in range(99)]
    async with serving(base, handler, budget_seconds=0.0):
        kubelet = FakeKubelet(base)
        info = await kubelet.register(DRIVER)

        answers = await kubelet.prepare(info.endpoint, FakeClaim("one", "a"))

    assert answers["one"].error == "attempt 98"


async def test_a_socket_that_a_killed_process_left_is_replaced(base: Path) -> None:
    socket = base / "plugins" / DRIVER / "dra.sock"
    socket.parent.mkdir(parents=True)
    socket.write_bytes(b"")
    async with serving(base, Handler()):
        await FakeKubelet(base).register(DRIVER)


async def test_a_second_instance_is_refused(base: Path) -> None:
    async with serving(base, Handler()):
        other = DraService(
            socket=base / "plugins" / DRIVER / "dra.sock",
            handler=Handler(),
            locks=ClaimLocks(),
            budget_seconds=0,
        )
        with pytest.raises(FatalError, match="another process answers"):
            await other.start()
