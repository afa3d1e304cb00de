"""Laws that hold for every pod, from the bytes of its review to those of the answer.

The API server stands for itself in ``tests/cluster/test_properties.py``; here its rules about what
we write are in ``tests/generate/rules.py``, so that many more pods can be tried.
"""

import asyncio
import base64
import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jsonpatch
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.settings import AdmissionSettings, decode_settings
from hami_dra.policy.claims import check_claim
from hami_dra.policy.collection import read_use, rebuild_template
from hami_dra.policy.dialects import list_keys
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.webhook.mutate import PodReviewer
from hami_dra.webhook.review import decode_review, encode_review
from hami_dra.webhook.server import _review as review_in_time
from tests.generate.budget import budget
from tests.generate.pods import pods
from tests.generate.rules import breaches_of_pod, breaches_of_template
from tests.generate.words import CONFIGURATION, EVERYTHING
from tests.unit.webhook.reviews import build_review, encode

_SETTINGS: dict[str, AdmissionSettings] = {
    "usual": AdmissionSettings(),
    "all dialects": EVERYTHING,
    "everything set": decode_settings(
        {
            **CONFIGURATION,
            "nvidia": {"overwriteEnv": True, "memoryFactor": 4, "defaultMemory": 5},
            "defaultSchedulerPolicy": {
                "nodeSchedulerPolicy": "spread",
                "gpuSchedulerPolicy": "numa,spread",
            },
        }
    ),
}
_NODES: dict[str, frozenset[NodeCards]] = {
    "none": frozenset(),
    "one size": frozenset({(Card(40960, 100, 10),) * 8}),
    "two sizes": frozenset({(Card(16384, 100, 10), Card(40960, 100, 10))}),
    "nine sizes": frozenset({tuple(Card(1000 * 2**i, 100, 10) for i in range(9))}),
}


class _Templates:
    """Stands for the store: keeps the last template."""

    def __init__(self) -> None:
        self.last: Mapping[str, Any] | None = None

    async def ensure(self, namespace: str, template: Mapping[str, Any]) -> None:
        assert namespace == "team"
        self.last = template


@functools.cache
def _reviewer(settings_name: str, nodes_name: str) -> tuple[PodReviewer, _Templates]:
    """Return one that stays, so that what it remembers of other pods is tried too."""
    templates = _Templates()
    nodes, settings = _NODES[nodes_name], _SETTINGS[settings_name]
    return PodReviewer(templates, lambda: nodes, settings), templates  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def _review(loop: asyncio.Runner, reviewer: PodReviewer, pod: Mapping[str, Any]) -> dict[str, Any]:
    request = decode_review(encode(build_review(pod)))
    verdict = loop.run(review_in_time(reviewer.review, request, 60.0))
    assert verdict.result in {"allowed", "patched", "denied"}, verdict
    review: dict[str, Any] = msgspec.json.decode(encode_review(request.uid, verdict))
    response: dict[str, Any] = review["response"]
    return response


def _require_rebuilt(
    pod: dict[str, Any],
    template: Mapping[str, Any],
    settings: AdmissionSettings,
    nodes: frozenset[NodeCards],
) -> None:
    """Fail unless the controller could make the template again for a pod that waits for it."""
    metadata = {**pod["metadata"], "name": "p", "namespace": "team"}
    use = read_use({**pod, "metadata": metadata})
    assert use is not None
    assert rebuild_template(use, settings, nodes) == template


@pytest.mark.timeout(7200)
@budget()
@given(st.data(), st.sampled_from(sorted(_SETTINGS)), st.sampled_from(sorted(_NODES)))
def test_every_pod_is_patched_for_good_or_denied_with_a_reason(
    loop: asyncio.Runner, data: st.DataObject, settings_name: str, nodes_name: str
) -> None:
    settings = _SETTINGS[settings_name]
    reviewer, templates = _reviewer(settings_name, nodes_name)
    templates.last = None
    pod = data.draw(pods(settings))
    before = copy.deepcopy(pod)
    answer = _review(loop, reviewer, pod)
    assert pod == before
    if not answer["allowed"]:
        assert answer["status"]["code"] == 403
        message = answer["status"]["message"]
        assert message.startswith("Pod team/p-: ")
        assert len(message) < 4096
        return
    if "patch" not in answer:
        assert templates.last is None
        return
    patched = jsonpatch.apply_patch(pod, msgspec.json.decode(base64.b64decode(answer["patch"])))
    assert list(breaches_of_pod(patched, pod, templates.last)) == []
    if templates.last is not None:
        _require_rebuilt(patched, templates.last, settings, _NODES[nodes_name])
        assert list(breaches_of_template(templates.last)) == []
        check_claim(templates.last["spec"]["spec"], field="spec.spec")
    spec = msgspec.json.encode(patched["spec"]).decode()
    assert not any(f'"{key}":' in spec for key in list_keys(settings))
    again = _review(loop, reviewer, patched)
    assert again["allowed"]
    assert "patch" not in again
