"""What bootstrap puts into a cluster."""

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from hami_dra.cli.controller import controller
from hami_dra.contract import names
from hami_dra.contract.errors import FatalError, UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS, decode_settings
from hami_dra.controller.bootstrap import Settings, bootstrap, list_hosts
from hami_dra.controller.manifests import WebhookAddress, render_objects
from hami_dra.kube import Api
from hami_dra.kube.objects import DEVICE_CLASSES, MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS
from hami_dra.service.clock import SystemClock
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.webhook.process import PATH_CHARGES, PATH_CLAIMS, PATH_PODS
from hami_dra.webhook.server import REVIEW_SECONDS

_URL = WebhookAddress(url="https://127.0.0.1:8443/")


class _OldApi(Api):
    """An API server that does not know a field."""

    async def apply(self, *args: Any, **options: Any) -> dict[str, Any]:
        stored = await super().apply(*args, **options)
        spec = {**stored.get("spec", {})}
        spec.pop("extendedResourceName", None)
        return {**stored, "spec": spec}


def _webhooks(address: WebhookAddress = _URL) -> tuple[dict[str, Any], dict[str, Any]]:
    _, _, (_, pods), (_, claims) = render_objects(address, b"CA")
    return pods["webhooks"][0], claims["webhooks"][0]


async def test_everything_is_applied_and_again_without_harm(tmp_path: Path) -> None:
    settings = Settings(certificate_dir=tmp_path, address=_URL)
    async with FakeCluster() as cluster:
        for _ in range(2):
            await bootstrap(settings, cluster.api(), SystemClock())
        classes = {item["metadata"]["name"] for item in cluster.objects(DEVICE_CLASSES)}
        assert classes == {names.DEVICE_CLASS, names.DEVICE_CLASS_MIG}
        (pods,) = cluster.objects(MUTATING_WEBHOOKS)
        config = pods["webhooks"][0]["clientConfig"]
        assert base64.b64decode(config["caBundle"]) == (tmp_path / "ca.crt").read_bytes()
        (claims,) = cluster.objects(VALIDATING_WEBHOOKS)
        assert (
            claims["webhooks"][0]["clientConfig"]["url"] == "https://127.0.0.1:8443/validate-claims"
        )


async def test_a_refusal_names_the_object(tmp_path: Path) -> None:
    settings = Settings(certificate_dir=tmp_path, address=_URL)
    async with FakeCluster() as cluster:
        cluster.fault = lambda _, path: 403 if "mutating" in path else None
        with pytest.raises(FatalError, match="cannot apply MutatingWebhookConfiguration hami-dra"):
            await bootstrap(settings, cluster.api(), SystemClock())


async def test_an_api_server_that_starts_is_waited_for(tmp_path: Path) -> None:
    settings = Settings(certificate_dir=tmp_path, address=_URL)
    answers = iter([503, 503])
    async with FakeCluster() as cluster:
        cluster.fault = lambda *_: next(answers, None)
        await bootstrap(settings, cluster.api(), SystemClock())
        assert cluster.objects(VALIDATING_WEBHOOKS)


def test_addresses() -> None:
    pods, claims = _webhooks()
    assert pods["clientConfig"]["url"] == f"https://127.0.0.1:8443{PATH_PODS}"
    pods, claims = _webhooks(WebhookAddress(namespace="n", name="s"))
    assert claims["clientConfig"]["service"] == {
        "namespace": "n",
        "name": "s",
        "port": 443,
        "path": PATH_CLAIMS,
    }
    assert "url" not in pods["clientConfig"]
    assert list_hosts(_URL) == ["127.0.0.1"]
    assert list_hosts(WebhookAddress(url="https://[::1]:1")) == ["::1"]
    assert list_hosts(WebhookAddress(namespace="n", name="s")) == [
        "s.n.svc",
        "s.n.svc.cluster.local",
    ]


@pytest.mark.parametrize("url", ["http://h", "h:1", "https://", "https://h?x", "https://u@h"])
def test_an_address_that_the_api_server_would_refuse(url: str) -> None:
    with pytest.raises(UserError, match="--webhook-url"):
        list_hosts(WebhookAddress(url=url))


def test_the_manifests_say_what_the_code_says() -> None:
    _, (_, device_class), *_ = render_objects(_URL, b"")
    expression = device_class["spec"]["selectors"][0]["cel"]["expression"]
    assert expression.startswith(f'device.driver == "{names.DRIVER_NAME}" && ')
    assert f'"{names.DEVICE_TYPE}"' in expression
    pods, claims = _webhooks()
    condition = pods["matchConditions"][0]["expression"]
    assert all(condition.count(f'"{key}"') == 2 for key in DEFAULT_SETTINGS.nvidia.keys)
    for webhook in (pods, claims):
        assert webhook["failurePolicy"] == "Fail"
        assert webhook["timeoutSeconds"] > REVIEW_SECONDS
        assert webhook["namespaceSelector"]["matchExpressions"][0] == {
            "key": names.LABEL_WEBHOOK_IGNORE,
            "operator": "NotIn",
            "values": ["ignore"],
        }
    assert pods["sideEffects"] == "NoneOnDryRun"
    assert claims["sideEffects"] == "NoneOnDryRun"


def test_the_conditions_say_what_the_code_says() -> None:
    _, _, (_, mutating), (_, validating) = render_objects(_URL, b"")
    (pods,) = mutating["webhooks"]
    claims, charges = validating["webhooks"]
    assert charges["clientConfig"]["url"] == f"https://127.0.0.1:8443{PATH_CHARGES}"
    assert charges["failurePolicy"] == "Fail"
    assert charges["sideEffects"] == "NoneOnDryRun"
    assert charges["namespaceSelector"] == pods["namespaceSelector"]
    assert "objectSelector" not in charges, "a label of the pod's author hides nothing"
    by_controller, _ = (each["expression"] for each in claims["matchConditions"])
    assert all(f'"{name}"' in by_controller for name in names.CLAIM_CONTROLLERS)
    assert f'object.metadata.labels["{names.LABEL_MANAGED_BY}"] == "{names.MANAGED_BY}"' in (
        by_controller
    )
    ours = f'c.resourceClaimTemplateName.startsWith("{names.TEMPLATE_NAME_PREFIX}-")'
    has_claim, marked = (each["expression"] for each in charges["matchConditions"])
    assert ours in has_claim
    assert ours in pods["matchConditions"][0]["expression"]
    assert f'"{names.ANNOTATION_QUOTA}" in object.metadata.annotations' in marked
    labels = "object.metadata.labels"
    assert f'{labels}["{names.LABEL_WEBHOOK_IGNORE}"] in ["ignore"]' in marked
    admission = decode_settings({"dialects": ["hami", "vgpu-manager"]})
    *_, (_, validating) = render_objects(_URL, b"", admission)
    marked = validating["webhooks"][1]["matchConditions"][1]["expression"]
    assert f'{labels}["{names.LABEL_VGPU_MANAGER_IGNORE}"] in ["true"]' in marked


def test_renamed_resources_reach_the_webhook(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("nvidia: {resourceCountName: hami.io/gpu}")
    result = CliRunner().invoke(controller, ["manifests", "--config", str(config)])
    _, _, pods, _ = yaml.safe_load_all(result.output)
    condition = pods["webhooks"][0]["matchConditions"][0]["expression"]
    assert condition.count('k in ["hami.io/gpu", "nvidia.com/gpumem", ') == 2
    admission = decode_settings({"nvidia": {"resourceCountName": "hami.io/gpu"}})
    _, _, (_, body), _ = render_objects(WebhookAddress(), b"", admission)
    assert body == pods


def test_the_words_of_other_dialects_reach_the_webhook_when_they_are_on() -> None:
    admission = decode_settings({"dialects": ["hami", "volcano"]})
    _, _, (_, body), _ = render_objects(WebhookAddress(), b"", admission)
    condition = body["webhooks"][0]["matchConditions"][0]["expression"]
    assert '"nvidia.com/gpu", ' in condition
    assert '"volcano.sh/vgpu-number"' in condition
    assert "volcano.sh" not in _webhooks()[0]["matchConditions"][0]["expression"]


def test_names_with_a_variable_end_reach_the_webhook_and_their_class_exists() -> None:
    admission = decode_settings({"dialects": ["nvidia"]})
    (_, mig), (_, cards), (_, body), _ = render_objects(WebhookAddress(), b"", admission)
    condition = body["webhooks"][0]["matchConditions"][0]["expression"]
    prefixes = '["nvidia.com/mig-", "nvidia.com/gpu-"].exists(p, k.startsWith(p))'
    assert condition.count(prefixes) == 2
    assert mig["metadata"]["name"] == names.DEVICE_CLASS_MIG
    assert f'"{names.DEVICE_TYPE_MIG}"' in mig["spec"]["selectors"][0]["cel"]["expression"]
    assert cards["metadata"]["name"] == names.DEVICE_CLASS
    assert "[].exists(p, k.startsWith(p))" in _webhooks()[0]["matchConditions"][0]["expression"]


def test_pods_with_whole_cards_only_do_not_reach_the_webhook_where_the_scheduler_has_them() -> None:
    admission = decode_settings({"nativeWholeCards": True})
    _, (_, cards), (_, body), _ = render_objects(WebhookAddress(), b"", admission)
    assert cards["spec"]["extendedResourceName"] == "nvidia.com/gpu"
    condition = body["webhooks"][0]["matchConditions"][0]["expression"]
    assert 'k in ["nvidia.com/gpumem", ' in condition
    assert '"nvidia.com/gpu" in c.resources.limits' in condition
    assert '"nvidia.com/use-gputype"' in condition
    assert 'object.spec.schedulerName in ["hami-scheduler"]' in condition
    _, (_, usual), *_ = render_objects(WebhookAddress(), b"")
    assert "extendedResourceName" not in usual["spec"]


async def test_a_cluster_that_cannot_leave_whole_cards_to_the_scheduler(tmp_path: Path) -> None:
    admission = decode_settings({"nativeWholeCards": True})
    settings = Settings(certificate_dir=tmp_path, address=_URL, admission=admission)
    async with FakeCluster() as cluster:
        await bootstrap(settings, cluster.api(), SystemClock())
        stored = next(
            item
            for item in cluster.objects(DEVICE_CLASSES)
            if item["metadata"]["name"] == names.DEVICE_CLASS
        )
        assert stored["spec"]["extendedResourceName"] == "nvidia.com/gpu"
        with pytest.raises(FatalError, match=r"nativeWholeCards needs Kubernetes 1\.36"):
            await bootstrap(settings, _OldApi(cluster.api().session), SystemClock())


def test_vgpu_manager_label_keeps_pods_away_where_its_words_are_understood() -> None:
    admission = decode_settings({"dialects": ["vgpu-manager"]})
    _, _, (_, body), _ = render_objects(WebhookAddress(), b"", admission)
    (pods,) = body["webhooks"]
    of_pods = pods["objectSelector"]["matchExpressions"]
    assert {term["key"]: term["values"] for term in of_pods} == {
        names.LABEL_WEBHOOK_IGNORE: ["ignore"],
        names.LABEL_VGPU_MANAGER_IGNORE: ["true"],
    }
    assert pods["namespaceSelector"]["matchExpressions"][: len(of_pods)] == of_pods


def test_other_pods_are_seen_only_to_hide_cards_and_never_kept_out() -> None:
    admission = decode_settings({"nvidia": {"overwriteEnv": True}})
    _, _, (_, body), _ = render_objects(WebhookAddress(), b"", admission)
    pods, others = body["webhooks"]
    assert others["name"] == "other-pods.gpu.project-hami.io"
    assert (pods["failurePolicy"], others["failurePolicy"]) == ("Fail", "Ignore")
    (condition,) = pods["matchConditions"]
    (opposite,) = others["matchConditions"]
    assert opposite["expression"] == f"!({condition['expression']})"
    assert others["namespaceSelector"] == pods["namespaceSelector"]


def test_the_command_prints_them() -> None:
    result = CliRunner().invoke(controller, ["manifests"])
    assert [body["kind"] for body in yaml.safe_load_all(result.output)] == [
        "DeviceClass",
        "DeviceClass",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ]


def test_url_and_service_exclude_each_other(tmp_path: Path) -> None:
    arguments = ["bootstrap", "--cert-dir", str(tmp_path), "--webhook-url", "https://h"]
    result = CliRunner().invoke(controller, [*arguments, "--webhook-service", "a/b"])
    assert "exclude each other" in result.output
    result = CliRunner().invoke(controller, [*arguments, "--webhook-service", "a"])
    assert "'a' is not NAMESPACE/NAME" in result.output


def test_pods_of_excluded_namespaces_never_wait_for_the_webhook() -> None:
    pods, _ = _webhooks()
    expressions = pods["namespaceSelector"]["matchExpressions"]
    assert expressions[-1] == {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system"],
    }
    assert pods["objectSelector"]["matchExpressions"] == expressions[:-1]
    admission = decode_settings({"excludedNamespaces": []})
    (_, _, (_, everywhere), _) = render_objects(_URL, b"CA", admission)
    selector = everywhere["webhooks"][0]["namespaceSelector"]
    assert selector["matchExpressions"] == expressions[:-1]
