"""Several instances on one node: who leads, who is alone, what the dead leave."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.errors import FatalError, RetryError
from hami_dra.kubeletplugin.instances import Instance, Peer, follow_lead, sweep_sockets
from hami_dra.kubeletplugin.places import name_sockets

JOINER = """
import sys
from pathlib import Path
from hami_dra.kubeletplugin.instances import Instance

with Instance.join(Path(sys.argv[1]), pod_uid=sys.argv[2]) as instance:
    instance.set_registered(registered=True)
    print("joined", flush=True)
    sys.stdin.readline()
"""


def start_instance(state_dir: Path, pod_uid: str) -> "subprocess.Popen[str]":
    """Join as a registered instance in a process of its own; returns once it has."""
    joiner = subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-c", JOINER, str(state_dir), pod_uid],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert joiner.stdout is not None
    assert joiner.stdout.readline() == "joined\n"
    return joiner


def join(stack: ExitStack, state_dir: Path, pod_uid: str) -> Instance:
    return stack.enter_context(Instance.join(state_dir, pod_uid=pod_uid))


def test_the_older_one_leads_until_the_newer_is_registered_and_after_it_has_left(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        old = join(stack, tmp_path, "old")
        assert old.leads()
        old.set_registered(registered=True)
        with ExitStack() as update:
            new = join(update, tmp_path, "new")
            assert (old.leads(), new.leads()) == (True, False)
            new.set_registered(registered=True)
            assert (old.leads(), new.leads()) == (False, True)
            new.set_registered(registered=False)  # the kubelet refused it later
            assert (old.leads(), new.leads()) == (True, False)
            new.set_registered(registered=True)
        assert old.leads()


def test_a_killed_instance_neither_leads_nor_blocks(tmp_path: Path) -> None:
    with ExitStack() as stack:
        old = join(stack, tmp_path, "old")
        old.set_registered(registered=True)
        new = stack.enter_context(start_instance(tmp_path, "new"))
        assert not old.leads()
        with old.alone() as alone:
            assert not alone
        new.send_signal(signal.SIGKILL)
        new.wait()

        assert old.leads()
        with old.alone() as alone:
            assert alone
        last = join(stack, tmp_path, "last")
        assert last.number == 3, "a number of the dead is not given again while it is known"
        assert {path.name for path in (tmp_path / "instances").glob("[0-9]*")} == {
            "1-old",
            "1-old.registered",
            "3-last",
        }


@given(st.permutations(range(4)), st.lists(st.tuples(st.integers(0, 3), st.booleans())))
def test_exactly_one_leads(order: list[int], changes: list[tuple[int, bool]]) -> None:
    base = Path(os.environ.get("XDG_RUNTIME_DIR", "/dev/shm")) / f"hd-{os.getpid()}-{next(_runs)}"  # noqa: S108 - memory, not a place to share
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["rm", "-rf", str(base)], check=True)
        instances = {number: join(stack, base, f"pod-{number}") for number in order}
        for number, registered in changes:
            instances[number].set_registered(registered=registered)
            assert sum(instance.leads() for instance in instances.values()) == 1


_runs = itertools.count()


def test_an_instance_that_must_be_alone_refuses_and_is_refused(tmp_path: Path) -> None:
    for first, second in (("", ""), ("", "pod"), ("pod", "")):
        with (
            Instance.join(tmp_path, pod_uid=first) as instance,
            pytest.raises(FatalError, match="--pod-uid"),
            Instance.join(tmp_path, pod_uid=second),
        ):
            pass
        assert instance.number == 1


def test_a_state_directory_that_cannot_be_used_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RetryError, match="--state-dir"),
        Instance.join(tmp_path / "file" / "state", pod_uid="pod"),
    ):
        pass


async def test_a_change_of_lead_is_told(tmp_path: Path) -> None:
    told: asyncio.Queue[bool] = asyncio.Queue()
    with ExitStack() as stack:
        old = join(stack, tmp_path, "old")
        following = asyncio.create_task(follow_lead(old, told.put_nowait))
        async with asyncio.timeout(5):
            assert await told.get()
            with ExitStack() as update:
                join(update, tmp_path, "new").set_registered(registered=True)
                assert not await told.get()
            assert await told.get()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_whoever_is_alone_is_told_of_the_next_one_by_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[bool] = asyncio.Queue()
    looks = 0
    check = Instance.check_lead

    async def count(instance: Instance) -> bool:
        nonlocal looks
        looks += 1
        return await check(instance)

    monkeypatch.setattr(Instance, "check_lead", count)
    with ExitStack() as stack:
        old = join(stack, tmp_path, "old")
        old.set_registered(registered=True)
        os.utime(tmp_path / "instances", (1e9, 1e9))
        following = asyncio.create_task(follow_lead(old, told.put_nowait))
        async with asyncio.timeout(8):  # of the ten seconds until it looks anyway
            assert await told.get()
            assert old.is_alone
            await asyncio.sleep(0.6)  # two looks, if it looked
            assert looks == 1
            with ExitStack() as update:
                join(update, tmp_path, "new").set_registered(registered=True)
                assert not await told.get()
                assert not old.is_alone
            assert await told.get()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_where_the_kernel_tells_nothing_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Instance, "listen", lambda *_: False)
    told: asyncio.Queue[bool] = asyncio.Queue()
    with ExitStack() as stack:
        old = join(stack, tmp_path, "old")
        os.utime(tmp_path / "instances", (1e9, 1e9))
        following = asyncio.create_task(follow_lead(old, told.put_nowait))
        async with asyncio.timeout(8):
            assert await told.get()
            join(stack, tmp_path, "new").set_registered(registered=True)
            assert not await told.get()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def test_only_sockets_that_nobody_listens_on_are_swept(base: Path) -> None:
    alive, dead, own = (
        name_sockets(base, "d.io", pod_uid=f"{number:08x}-0000-4000-8000-000000000000")
        for number in range(3)
    )
    foreign = base / "plugins_registry" / "other-reg.sock"
    listeners = [
        bind(path, listen=paths is alive)
        for paths in (alive, dead, own)
        for path in (paths.service, paths.registration)
    ]
    listeners.append(bind(foreign, listen=False))

    removed = sweep_sockets(base, "d.io", own)

    for listener in listeners:
        listener.close()
    assert sorted(removed) == sorted([dead.service, dead.registration])
    assert foreign.exists()
    assert own.service.exists()


def bind(path: Path, *, listen: bool) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    if listen:
        server.listen()
    return server


async def test_whoever_is_alone_looks_around_only_when_somebody_came_or_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    peers = Instance.peers

    def count(instance: Instance) -> list[Peer]:
        nonlocal looks
        looks += 1
        return peers(instance)

    monkeypatch.setattr(Instance, "peers", count)
    with ExitStack() as stack:
        old = join(stack, tmp_path, "old")
        old.set_registered(registered=True)
        os.utime(tmp_path / "instances", (4e9, 4e9))  # as young as can be
        assert [await old.check_lead() for _ in range(3)] == [True] * 3
        assert looks == 3, "somebody may have come within the same tick of the clock"

        os.utime(tmp_path / "instances", (1e9, 1e9))
        assert [await old.check_lead() for _ in range(3)] == [True] * 3
        assert looks == 4
        with ExitStack() as update:
            new = join(update, tmp_path, "new")
            new.set_registered(registered=True)
            assert (await old.check_lead(), await new.check_lead()) == (False, True)
            os.utime(tmp_path / "instances", (1e9, 1e9))
            looks = 0
            assert [await old.check_lead() for _ in range(3)] == [False] * 3
            assert looks == 3, "a lock that the kernel drops changes no directory"
        assert await old.check_lead()
