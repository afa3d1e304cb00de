"""What the benchmark sends and how it reckons."""

import msgspec
import pytest

from hami_dra.policy.podplan import plan_pod
from hami_dra.webhook.review import decode_review
from tests.cluster import toolchain
from tests.cluster.webhookbench import pods, serving
from tests.cluster.webhookbench.report import Report, spread


def test_every_review_is_of_a_realistic_size_and_needs_a_template() -> None:
    for body in (*pods.list_reviews(16), *pods.list_distinct_reviews(16)):
        assert 4000 < len(body) < 7000
        pod = decode_review(body).object
        assert pod is not None
        plan = plan_pod(pod)
        assert plan is not None
        assert plan.template is not None


def test_replicas_share_templates_and_distinct_pods_do_not() -> None:
    names = []
    for bodies in (pods.list_reviews(32), pods.list_distinct_reviews(32)):
        plans = [plan_pod(decode_review(body).object or {}) for body in bodies]
        templates = [plan.template for plan in plans if plan is not None]
        names.append({template["metadata"]["name"] for template in templates if template})
    assert len(names[0]) == len(pods.WORKLOADS)
    assert len(names[1]) == 32


def test_every_spec_comes_in_every_namespace() -> None:
    requests = [decode_review(body) for body in pods.list_tenants(3, 4)]
    assert len({(request.namespace, request.name) for request in requests}) == 12


def test_the_slices_of_a_large_cluster_are_each_another_node() -> None:
    bodies = serving._list_slices()
    names = {msgspec.json.decode(next(bodies))["spec"]["pool"]["name"] for _ in range(10)}
    assert len(names) == 10


def test_a_missed_target_is_said_and_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.at_least("rate", 10, 20, "10/s")
    report.at_most("memory", 10, 20, "10 MiB")
    report.say("other", spread([3, 1, 2]))
    lines = report.table().splitlines()
    assert lines[2].split() == ["rate", "10/s", ">=", "20", "not", "held"]
    assert lines[3].split() == ["memory", "10", "MiB", "<=", "20", "held"]
    assert lines[4].split() == ["other", "2", "(1", "to", "3)"]
    assert "rate: 10/s not held" in capsys.readouterr().out


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    metrics = "\n".join(
        f'hami_dra_webhook_review_seconds_bucket{{le="{bound}",path="/mutate-pods"}} {count}'
        for bound, count in (("0.001", 98.0), ("0.005", 99.0), ("0.01", 99.0), ("+Inf", 100.0))
    )
    buckets = serving._read_buckets(metrics)
    assert serving._find_quantile(buckets, 0.5) == 0.001
    assert serving._find_quantile(buckets, 0.99) == 0.005
    assert serving._find_quantile(buckets, 1.0) == float("inf")


def test_the_bench_programs_are_built_anew_when_their_source_changes() -> None:
    folder = toolchain.PINS / toolchain.BENCH.folder
    sources = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert sources == {"go.mod", "constantpatch/main.go", "postload/main.go"}
