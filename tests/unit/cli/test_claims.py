"""``hami-dra claims``: what it prints, asks for and refuses."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hami_dra.cli.claims import claims
from hami_dra.contract.limits import digest_limits
from hami_dra.contract.names import ANNOTATION_LIMITS
from hami_dra.kube.objects import CLAIMS
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.cli.remote import run_command

DRIVER = "hami-core-gpu.project-hami.io"


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """An API server."""
    async with FakeCluster() as fake:
        yield fake


def make_result(request: str = "gpu", **changes: Any) -> dict[str, Any]:
    result = {
        "request": request,
        "driver": DRIVER,
        "pool": "node-1",
        "device": "gpu-0",
        "shareID": f"share-{request}",
        "consumedCapacity": {"memory": "3000Mi", "cores": "30", "slots": "1"},
    }
    return {key: value for key, value in (result | changes).items() if value is not None}


def make_entry(
    request: str = "gpu", text: str = "", refused: str = "", **data: Any
) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True", "reason": "Prepared", "message": "m"}]
    if refused:
        conditions.append(
            {"type": "LimitsChanged", "status": "False", "reason": "Refused", "message": refused}
        )
    seen = {"limitsSeen": digest_limits(text)} if text else {}
    return {
        "driver": DRIVER,
        "pool": "node-1",
        "device": "gpu-0",
        "shareID": f"share-{request}",
        "conditions": conditions,
        "data": {"uuid": "GPU-0", "memoryMiB": 3000, "coresPercent": 30, "backend": "libvgpu"}
        | seen
        | data,
    }


def make_claim(
    *results: dict[str, Any],
    name: str = "job",
    entries: tuple[dict[str, Any], ...] = (),
    text: str | None = None,
    pods: tuple[str, ...] = ("p",),
) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "annotations": {} if text is None else {ANNOTATION_LIMITS: text},
        },
        "status": {
            "allocation": {"devices": {"results": list(results or (make_result(),))}},
            "devices": list(entries),
            "reservedFor": [{"resource": "pods", "name": pod, "uid": pod} for pod in pods],
        },
    }


run = partial(run_command, claims)


async def test_shares_are_listed(tmp_path: Path, cluster: FakeCluster) -> None:
    await cluster.put(CLAIMS, make_claim(entries=(make_entry(memoryMiB=1000, coresPercent=0),)))
    whole = make_result(shareID=None, consumedCapacity=None)
    await cluster.put(CLAIMS, make_claim(whole, name="whole", pods=()))
    other = make_claim(make_result(driver="nic.example.com"), name="nic")
    await cluster.put(CLAIMS, other)
    table = await run(tmp_path, cluster, "list")
    data = await run(tmp_path, cluster, "list", "-n", "team", "-o", "json")
    none = await run(tmp_path, cluster, "list", "-n", "empty")

    head, first, second = (line.split() for line in table.output.splitlines())
    assert head[:4] == ["NAMESPACE", "CLAIM", "REQUEST", "NODE"]
    assert first == [
        "team", "job", "gpu", "node-1", "GPU-0", "3000", "MiB", "1000", "MiB", "not", "limited",
        "libvgpu", "True", "p",
    ]  # fmt: skip
    assert second == ["team", "whole", "gpu", "node-1", "gpu-0", "whole", *["-"] * 5]
    assert [view["name"] for view in json.loads(data.output)] == ["job", "whole"]
    assert none.output == "no claim has a card of ours\n"


async def test_one_claim_is_shown(tmp_path: Path, cluster: FakeCluster) -> None:
    text = '{"gpu":{"memoryMiB":9999}}'
    entry = make_entry(text=text, refused="must be from 1 to 3000; got 9999")
    await cluster.put(CLAIMS, make_claim(entries=(entry,), text=text))
    shown = await run(tmp_path, cluster, "show", "team/job")
    data = await run(tmp_path, cluster, "show", "team/job", "-o", "json")
    gone = await run(tmp_path, cluster, "show", "team/absent")
    odd = await run(tmp_path, cluster, "show", "job")

    assert shown.output == (
        "Claim team/job (uid-job)\n"
        "Pods: p\n"
        f"Asked for: {text}\n"
        "\n"
        "Request gpu on node node-1: GPU-0\n"
        "  takes     3000 MiB, 30 % compute\n"
        "  limit     3000 MiB, compute 30 %\n"
        "  enforced  libvgpu\n"
        "  ready     True\n"
        "  LimitsChanged Refused: must be from 1 to 3000; got 9999\n"
    )
    assert json.loads(data.output)["wish"] == text
    assert "not found" in str(gone.exception)
    assert "'job' is not NAMESPACE/CLAIM" in odd.output


@pytest.mark.parametrize(
    ("results", "known", "arguments", "text"),
    [
        ([], None, ["--memory-mib", "1000"], '{"gpu":{"memoryMiB":1000}}'),
        (
            [],
            None,
            ["--memory-mib", "1", "--cores", "30"],
            '{"gpu":{"memoryMiB":1,"coresPercent":30}}',
        ),
        ([], '{"gpu":{"memoryMiB":1}}', ["--cores", "5"], '{"gpu":{"coresPercent":5}}'),
        ([], "nonsense", ["--cores", "5"], '{"gpu":{"coresPercent":5}}'),
        ([], '{"gpu":{"memoryMiB":1}}', ["--reset"], None),
        (
            ["a", "b"],
            '{"a":{"memoryMiB":1},"gone":{}}',
            ["--request", "b", "--cores", "5"],
            '{"a":{"memoryMiB":1},"b":{"coresPercent":5}}',
        ),
        (
            ["a", "b"],
            '{"a":{"memoryMiB":1},"b":{}}',
            ["--request", "b", "--reset"],
            '{"a":{"memoryMiB":1}}',
        ),
    ],
)
async def test_what_is_asked_for_is_written(  # noqa: PLR0917 - a table
    tmp_path: Path,
    cluster: FakeCluster,
    results: list[str],
    known: str | None,
    arguments: list[str],
    text: str | None,
) -> None:
    await cluster.put(CLAIMS, make_claim(*map(make_result, results), text=known))
    done = await run(tmp_path, cluster, "set-limit", "team/job", *arguments, "--wait-seconds", "0")

    (stored,) = cluster.objects(CLAIMS)
    assert done.exit_code == 0, done.exception
    assert stored["metadata"]["annotations"].get(ANNOTATION_LIMITS) == text


@pytest.mark.parametrize(
    ("results", "arguments", "words"),
    [
        ([make_result()], ["--memory-mib", "3001"], "must be from 1 to 3000"),
        ([make_result()], ["--cores", "31"], "must be from 1 to 30"),
        ([make_result()], ["--cores", "0"], "consumes 30 %"),
        ([make_result()], ["--request", "x", "--cores", "1"], "no such request"),
        ([make_result()], ["--request", "x", "--reset"], "no request x; it has gpu"),
        ([make_result("a"), make_result("b")], ["--cores", "1"], "name one with --request"),
        ([make_result(adminAccess=True)], ["--memory-mib", "1"], "nothing limits it"),
        (
            [make_result(shareID=None, consumedCapacity=None)],
            ["--memory-mib", "1"],
            "nothing limits it",
        ),
        ([make_result(driver="other")], ["--memory-mib", "1"], "no card of ours"),
    ],
)
async def test_what_the_node_would_refuse_is_not_written(
    tmp_path: Path,
    cluster: FakeCluster,
    results: list[dict[str, Any]],
    arguments: list[str],
    words: str,
) -> None:
    await cluster.put(CLAIMS, make_claim(*results))
    done = await run(tmp_path, cluster, "set-limit", "team/job", *arguments)

    assert words in str(done.exception)
    assert all(method == "GET" for method, _ in cluster.requests)


async def test_it_waits_for_what_the_node_says(tmp_path: Path, cluster: FakeCluster) -> None:
    text = '{"gpu":{"memoryMiB":1000}}'
    await cluster.put(CLAIMS, make_claim(entries=(make_entry(),)))
    asked = asyncio.create_task(
        run(tmp_path, cluster, "set-limit", "team/job", "--memory-mib", "1000")
    )
    await cluster.wait_for(
        lambda: ANNOTATION_LIMITS in cluster.objects(CLAIMS)[0]["metadata"]["annotations"]
    )
    entry = make_entry(text=text, memoryMiB=1000)
    await cluster.put(CLAIMS, make_claim(entries=(entry,), text=text))
    done = await asked

    assert done.output == "claim team/job: gpu on GPU-0: 1000 MiB, 30 % compute\n"


async def test_it_says_what_the_node_refuses_or_does_not_say(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    text = '{"gpu":{"memoryMiB":1000}}'
    entry = make_entry(text=text, refused="the card is gone")
    await cluster.put(CLAIMS, make_claim(entries=(entry,)))
    call = ("set-limit", "team/job", "--memory-mib", "1000")
    refused = await run(tmp_path, cluster, *call)
    await cluster.put(CLAIMS, make_claim(entries=()))
    silent = await run(tmp_path, cluster, *call, "--wait-seconds", "0.1")
    await cluster.put(CLAIMS, make_claim(pods=()))
    unused = await run(tmp_path, cluster, *call)

    assert "node node-1 refuses: the card is gone" in str(refused.exception)
    assert "node node-1 has not answered within 0.1 s" in str(silent.exception)
    assert "no pod uses it" in unused.output


@pytest.mark.parametrize("arguments", [[], ["--reset", "--cores", "1"]])
def test_it_takes_limits_or_their_end(arguments: list[str]) -> None:
    done = CliRunner().invoke(claims, ["set-limit", "team/job", *arguments])

    assert done.exit_code == 2
    assert "or --reset alone" in done.output
