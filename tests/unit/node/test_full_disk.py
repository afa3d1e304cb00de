"""A disk without a free block, and one that is read-only, by a small file system of one's own."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hami_dra.cdi.durable import write_durably
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.errors import RetryError
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.node.ledger import Ledger
from hami_dra.node.reserve import Reserve
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.rig import make_claim, make_share, put_claim, start_rig
from tests.unit.node.test_ledger import CAPACITY, make_record

ROOT = Path(__file__).resolve().parents[3]
MOUNT = 'mount -n -t tmpfs -o size=768k small "$0" && exec "$@"'


def fill(directory: Path) -> Path:
    """Take every free block."""
    filler = directory / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return filler


def list_sizes(directory: Path) -> dict[str, int]:
    """Return how many bytes each file has."""
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def make_read_only(directory: Path) -> None:
    """Mount a directory over itself, read-only."""
    for options in (("--bind", directory, directory), ("-o", "remount,bind,ro", directory)):
        subprocess.run(["mount", "-n", *options], check=True)  # noqa: S603, S607 - util-linux


async def open_with_claims(directory: Path, *uids: str) -> Ledger:
    ledger = await Ledger.open(directory / "ledger.db")
    for uid in uids:
        await ledger.begin(make_record(uid, memory=10, cores=1), {"gpu-0": CAPACITY})
        await ledger.finish(uid, "boot")
    return ledger


async def forgets(directory: Path) -> None:
    ledger = await open_with_claims(directory, "a", "b")
    await ledger.keep_reserve()
    filler = fill(directory)
    with pytest.raises(RetryError, match="No space left"):
        await ledger.keep_reserve()
    with pytest.raises(RetryError, match="full"):
        await ledger.begin(make_record("c", memory=10, cores=1), {"gpu-0": CAPACITY})
    await ledger.remove("a")
    fill(directory)
    assert [record.binding.claim_uid for record in await ledger.records()] == ["b"]
    filler.unlink()
    await ledger.keep_reserve()
    assert (directory / "reserve").exists()
    await ledger.close()


async def opens(directory: Path) -> None:
    ledger = await open_with_claims(directory, "a", "b")
    await ledger.keep_reserve()
    await ledger.close()
    fill(directory)
    ledger = await Ledger.open(directory / "ledger.db")
    assert len(await ledger.records()) == 2
    await ledger.remove("a")
    await ledger.close()


async def opens_again(directory: Path) -> None:
    """What a closed ledger gives back is ours, whoever waits for a free block."""
    ledger = await open_with_claims(directory, "a", "b")
    await ledger.keep_reserve()
    await ledger.close()
    for _ in range(3):
        fill(directory)
        ledger = await Ledger.open(directory / "ledger.db")
        assert len(await ledger.records()) == 2
        await ledger.close()


async def keeps(directory: Path) -> None:
    """Without room a ledger cannot be opened, but it is no corrupt one."""
    ledger = await open_with_claims(directory, "a")
    await ledger.close()
    Reserve(directory).release()
    filler = fill(directory)
    with pytest.raises(Exception, match="--state-dir"):
        await Ledger.open(directory / "ledger.db")
    filler.unlink()
    ledger = await Ledger.open(directory / "ledger.db")
    assert [record.binding.claim_uid for record in await ledger.records()] == ["a"]
    await ledger.close()


async def leaves_nothing(directory: Path) -> None:
    fill(directory)
    with pytest.raises(OSError, match="No space left"):
        write_durably(directory / "file", b"content", mode=0o600)
    store = CdiStore(directory, prefix="x-")
    with pytest.raises(RetryError, match="No space left"):
        store.probe()
    with pytest.raises(RetryError, match="No space left"):
        Reserve(directory).hold()
    assert list_sizes(directory).keys() == {"filler", "reserve"}
    assert list_sizes(directory)["reserve"] == 0


async def starts_read_only(directory: Path) -> None:
    """What cannot be tidied up at the start is no reason not to serve."""
    cdi = directory / "cdi"
    async with FakeCluster() as cluster:
        ref = await put_claim(cluster, make_claim("job", make_share()))
        async with start_rig(directory, cluster) as rig:
            await rig.preparer.prepare(ref)
            library = rig.files.installed.library.parent
        (cdi / f".{FILE_PREFIX}old.json.tmp").write_bytes(b"{")
        (library / "libvgpu-0-old.so").write_bytes(b"\x7fELF")
        for place in (cdi, library, directory / "state" / "claims"):
            make_read_only(place)
        async with start_rig(directory, cluster, boot_id="boot-2") as rig:
            report = await rig.recovery.start()
            assert report.kept == 1
            assert "not writable" in str(rig.cdi_state[-1])


CASES = {
    case.__name__: case
    for case in (forgets, opens, opens_again, keeps, leaves_nothing, starts_read_only)
}


@pytest.mark.parametrize("case", CASES)
def test_on_a_full_disk(case: str, tmp_path: Path) -> None:
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    program = [sys.executable, "-m", __name__, case, str(tmp_path)]
    done = subprocess.run(  # noqa: S603 - its own program
        [*namespace, "sh", "-c", MOUNT, str(tmp_path), *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    asyncio.run(CASES[sys.argv[1]](Path(sys.argv[2])))
