"""Why admission did not rewrite a pod, in the order in which it would have looked."""

from typing import Any

import pytest

from hami_dra.policy.untouched import explain_kept_keys

IGNORE = {"hami.io/webhook": "ignore"}
UNLESS = {
    "matchExpressions": [{"key": "hami.io/webhook", "operator": "NotIn", "values": ["ignore"]}]
}


def make(name: str, labels: dict[str, str] | None = None, born: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels, "creationTimestamp": born}}


def make_webhook(**hook: Any) -> dict[str, Any]:
    selectors = {"namespaceSelector": UNLESS, "objectSelector": UNLESS}
    return {**make("hami-dra", born="2026-02-02T00:00:00Z"), "webhooks": [{**selectors, **hook}]}


@pytest.mark.parametrize(
    ("pod", "namespace", "webhook", "said"),
    [
        (make("p", IGNORE), make("n"), make_webhook(), "its label hami.io/webhook=ignore"),
        (make("p"), make("n"), None, "there is no MutatingWebhookConfiguration hami-dra"),
        (make("p"), make("n", IGNORE), make_webhook(), "namespace n out by its label"),
        (
            make("p"),
            make("n"),
            make_webhook(namespaceSelector={"matchLabels": {"gpus": "yes"}}),
            "the webhook's namespaceSelector leaves namespace n out",
        ),
        (
            make("p"),
            make("n"),
            make_webhook(objectSelector={"matchLabels": {"gpus": "yes"}}),
            "the webhook's objectSelector leaves it out by its labels",
        ),
        (
            make("p", born="2026-01-01T00:00:00Z"),
            None,
            make_webhook(),
            "it was created at 2026-01-01T00:00:00Z, before the webhook at 2026-02-02T00:00:00Z",
        ),
        (make("p", born="2026-03-01T00:00:00Z"), make("n"), make_webhook(), "would have seen it"),
    ],
)
def test_the_reason(
    pod: dict[str, Any],
    namespace: dict[str, Any] | None,
    webhook: dict[str, Any] | None,
    said: str,
) -> None:
    assert said in explain_kept_keys(pod, namespace, webhook)
