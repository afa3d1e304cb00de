"""Claims whose files nobody touched are not gone through, and whatever is touched is."""

import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.rig import Rig, make_claim, make_share, put_claim, start_rig


@dataclass
class LaterClock:
    """The machine's clocks, ahead by so many seconds: what was written just now is old."""

    ahead: float = 10.0
    slept: float = field(default=0.0)

    def monotonic(self) -> float:
        """Return the machine's seconds, and those that the test let pass."""
        return time.monotonic() + self.slept

    def wall(self) -> float:
        """Return the same since the epoch."""
        return time.time() + self.ahead + self.slept


@dataclass
class Bench:
    """A rig with one prepared claim, and how often its files were gone through."""

    rig: Rig
    ref: ClaimRef
    clock: LaterClock
    gone_through: int = 0
    told: list[int] = field(default_factory=list)

    @property
    def request(self) -> Path:
        """The directory of the claim's one request."""
        return self.rig.settings.state_dir / "claims" / self.ref.uid / "gpu"

    def cdi(self, kind: str) -> Path:
        """One of the claim's CDI files."""
        (path,) = self.rig.settings.cdi_dir.glob(f"*-{kind}-{self.ref.uid}.json")
        return path

    async def repair(self) -> tuple[int, int]:
        """Repair; return how many files were written and how many claims gone through."""
        before = self.gone_through
        written = await self.rig.recovery.repair()
        return written, self.gone_through - before


@asynccontextmanager
async def making_bench(
    base: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, clock: LaterClock
) -> AsyncIterator[Bench]:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    told: list[int] = []
    async with start_rig(base, cluster, clock=clock, on_repair=lambda: told.append(1)) as rig:
        await rig.preparer.prepare(ref)
        bench = Bench(rig, ref, clock, told=told)
        ensure = ShareDirectories.ensure

        def count(*arguments: object) -> None:
            bench.gone_through += 1
            ensure(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(ShareDirectories, "ensure", count)
        yield bench


@pytest.fixture
async def bench(
    tmp_path: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    async with making_bench(tmp_path, cluster, monkeypatch, LaterClock()) as made:
        yield made


def _rewrite(path: Path) -> None:
    """Change a byte in place: the same inode and the same size."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"#")
    path.chmod(mode)


async def test_a_claim_that_nobody_touched_is_gone_through_once(bench: Bench) -> None:
    assert [await bench.repair() for _ in range(4)] == [(0, 1), (0, 0), (0, 0), (0, 0)]
    assert len(bench.told) == 1, "whoever listens at a claim's directories has to do so anew"


DAMAGES: dict[str, Callable[[Bench], object]] = {
    "CDI file removed": lambda b: b.cdi("claim").unlink(),
    "CDI file changed": lambda b: _rewrite(b.cdi("claim")),
    "metadata's CDI file removed": lambda b: b.cdi("metadata").unlink(),
    "document removed": lambda b: (b.request / "metadata.json").unlink(),
    "grant removed": lambda b: (b.request / "grant").unlink(),
    "grant changed": lambda b: _rewrite(b.request / "grant"),
    "region directory removed": lambda b: (b.request / "region").rmdir(),
    "region directory of another mode": lambda b: (b.request / "region").chmod(0o700),
    "left by a killed writer": lambda b: (b.request / ".grant.tmp").write_bytes(b"x"),
    "everything": lambda b: shutil.rmtree(b.request),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_is_touched_is_in_order_after_the_next_look(bench: Bench, damage: str) -> None:
    await bench.repair()
    good = _snapshot(bench)
    DAMAGES[damage](bench)
    assert _snapshot(bench) != good

    assert (await bench.repair())[1] == 1
    assert _snapshot(bench) == good
    await bench.repair()
    assert await bench.repair() == (0, 0)


def _snapshot(bench: Bench) -> dict[str, tuple[int, bytes]]:
    """Return modes of all files and directories of the claim, and contents but a document's.

    A document that was lost has less in it: it is written from what the ledger has.
    """
    paths = [bench.request, *bench.request.rglob("*"), *bench.rig.settings.cdi_dir.glob("*.json")]
    return {str(path): (path.stat().st_mode, _read(path)) for path in paths if path.exists()}


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and path.name != "metadata.json" else b""


async def test_a_library_that_is_gone_is_said_each_time(bench: Bench) -> None:
    await bench.repair()
    bench.rig.files.installed.library.unlink()
    for _ in range(2):
        with capture_logs() as logs:
            await bench.repair()
        assert "no such file, but the claim's containers need it" in str(logs)


async def test_other_limits_are_gone_through(bench: Bench) -> None:
    await bench.repair()
    (record,) = await bench.rig.ledger.records()
    (device,) = record.binding.devices
    binding = replace(record.binding, devices=(replace(device, memory_mib=1000),))
    await bench.rig.ledger.begin(replace(record, binding=binding), {})
    assert (await bench.repair())[1] == 1


async def test_a_change_of_a_moment_ago_may_have_a_second_one_of_the_same_date(
    tmp_path: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = LaterClock(ahead=0.0)
    async with making_bench(tmp_path, cluster, monkeypatch, clock) as bench:
        bench.clock.ahead = 0.5
        assert [await bench.repair() for _ in range(2)] == [(0, 1), (0, 1)]
        bench.clock.ahead = 5.0
        assert [await bench.repair() for _ in range(2)] == [(0, 1), (0, 0)]


async def test_every_claim_is_gone_through_every_few_minutes(bench: Bench) -> None:
    await bench.repair()
    bench.clock.slept = 299.0
    assert await bench.repair() == (0, 0)
    bench.clock.slept = 301.0
    assert await bench.repair() == (0, 1)


async def test_a_claim_that_is_given_back_is_forgotten(bench: Bench) -> None:
    await bench.repair()
    await bench.rig.preparer.unprepare(bench.ref)
    assert await bench.repair() == (0, 0)
    await bench.rig.preparer.prepare(bench.ref)
    before = bench.gone_through
    await bench.repair()
    assert bench.gone_through == before + 1
