"""Typed models that others generated from the API's description know every field that we write."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from kubernetes_asyncio import client

from hami_dra.controller.manifests import WebhookAddress, render_objects
from hami_dra.policy.podplan import PodPlan, plan_pod

_ROOT = Path(__file__).parents[2]


def _round_trip(body: dict[str, Any], model: str) -> Any:
    """Read an object into its model and write it again; what the model lacks is lost."""
    api = client.ApiClient.__new__(client.ApiClient)  # its constructor opens a connection pool
    api.configuration = client.Configuration()
    typed = api.deserialize(cast("Any", SimpleNamespace(data=json.dumps(body))), model)
    return api.sanitize_for_serialization(typed)


def _plans() -> Iterator[PodPlan]:
    for row in yaml.safe_load((_ROOT / "tests/golden/hami/pods.yaml").read_text()):
        plan = plan_pod(row["pod"])
        assert plan is not None
        yield plan


def test_templates_and_rewritten_pods_survive_the_models() -> None:
    for plan in _plans():
        assert _round_trip(plan.pod, "V1Pod") == plan.pod
        if plan.template is not None:
            assert _round_trip(plan.template, "V1ResourceClaimTemplate") == plan.template


@pytest.mark.parametrize("address", [WebhookAddress(), WebhookAddress(url="https://127.0.0.1:1")])
def test_what_bootstrap_applies_survives_the_models(address: WebhookAddress) -> None:
    for resource, body in render_objects(address, b"CA"):
        assert _round_trip(body, f"V1{resource.kind}") == body


def test_deployed_manifests_survive_the_models() -> None:
    bodies = [
        body
        for path in sorted((_ROOT / "deploy/manifests").glob("*.yaml"))
        for body in yaml.safe_load_all(path.read_text())
    ]
    assert bodies
    for body in bodies:
        assert _round_trip(body, f"V1{body['kind']}") == body


def test_no_role_has_a_wildcard() -> None:
    for body in yaml.safe_load_all((_ROOT / "deploy/manifests/rbac.yaml").read_text()):
        for rule in body.get("rules", ()):
            assert "*" not in str(rule)
