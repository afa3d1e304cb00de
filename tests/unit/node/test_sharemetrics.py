"""What Prometheus reads of shares."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hami_dra.contract.region import decode_region
from hami_dra.node.arbitration import ArbitrationStatistics, ShareFigures
from hami_dra.node.sharemetrics import ShareMetrics
from hami_dra.service.exposition import Exposition
from tests.unit.node.test_regionfile import encode_region
from tests.unit.policy.test_audit import A, B, hold
from tests.unit.policy.test_shares import CARD, MIB, say, share

LABELS = f'{{claim="job",index="0",namespace="team",request="gpu",uuid="{CARD}"}}'


def figures(**changes: Any) -> ShareFigures:
    facts: dict[str, Any] = {
        "share": share("job"),
        "device": say(),
        "overhead_bytes": 0,
        "used_bytes": 0,
        "busy_seconds": 0.0,
        "alone": False,
        "held": False,
    }
    return ShareFigures(**facts | changes)


def scrape(*shares: ShareFigures, **changes: int) -> dict[str, float]:
    """Return the values by name and labels."""
    exposition = Exposition()
    statistics = ArbitrationStatistics(shares=shares, **changes)
    exposition.register(ShareMetrics(lambda: statistics, lambda: [hold("job", A, B)]))
    return {
        sample.name
        + "{"
        + ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
        + "}": sample.value
        for family in text_string_to_metric_families(exposition.render().decode())
        for sample in family.samples
    }


def test_a_share_is_told_with_what_it_has_and_waited_for() -> None:
    device = say(
        used_bytes=600 * MIB,
        peak_bytes=700 * MIB,
        busy_ns=2_500_000_000,
        throttled_ns=1_500_000_000,
        oom_count=3,
        driver_oom_count=4,
        spilled_bytes=80 * MIB,
        spill_count=6,
        waits=(1, 2, 3, 0, 0, 5),
    )
    seen = figures(
        device=device, overhead_bytes=50 * MIB, used_bytes=650 * MIB, busy_seconds=3.5, held=True
    )
    found = scrape(seen, readings=7, failures=1, damaged=2)

    wanted = {
        "memory_limit_bytes": 1000 * MIB,
        "memory_used_bytes": 650 * MIB,
        "memory_charged_bytes": 600 * MIB,
        "memory_overhead_bytes": 50 * MIB,
        "memory_peak_bytes": 700 * MIB,
        "compute_limit_ratio": 0.3,
        "compute_seconds_total": 3.5,
        "charged_seconds_total": 2.5,
        "throttled_seconds_total": 1.5,
        "refused_allocations_total": 3,
        "failed_allocations_total": 4,
        "memory_spilled_bytes": 80 * MIB,
        "spilled_allocations_total": 6,
        "alone": 0,
        "held": 1,
        "launch_wait_seconds_sum": 1.5,
        "launch_wait_seconds_count": 11,
    }
    assert {name: found[f"hami_dra_share_{name}{LABELS}"] for name in wanted} == wanted
    buckets = [
        value
        for name, value in found.items()
        if name.startswith("hami_dra_share_launch_wait_seconds_bucket")
    ]
    assert buckets == [1, 3, 6, 6, 6, 11]
    assert found['hami_dra_arbitration_readings_total{result="failed"}'] == 1
    assert found["hami_dra_arbitration_damaged_regions{}"] == 2
    assert found['hami_dra_claim_pod{claim="job",namespace="team",pod="b"}'] == 1


def test_alone_the_limit_is_what_it_is_raised_to() -> None:
    for changes, ratio in (
        ({}, 1.0),
        ({"ceiling_percent": 80}, 0.8),
        ({"core_policy": "force"}, 0.3),
    ):
        found = scrape(figures(share=share("job", **changes), alone=True))
        assert found[f"hami_dra_share_compute_limit_ratio{LABELS}"] == ratio


def test_before_a_program_has_run_only_the_grant_is_told() -> None:
    found = scrape(figures(device=None))

    assert f"hami_dra_share_memory_limit_bytes{LABELS}" in found
    assert f"hami_dra_share_memory_charged_bytes{LABELS}" not in found


@given(st.binary(min_size=192, max_size=192))
def test_no_bytes_of_a_tenant_make_another_series(noise: bytes) -> None:
    data = encode_region(CARD)
    data[256 + 64 : 512] = noise
    device = decode_region(bytes(data)).devices[0]

    assert scrape(figures(device=device)).keys() == scrape(figures()).keys()
