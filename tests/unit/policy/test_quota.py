"""Counting, and whether there is room."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.names import ANNOTATION_RESERVATIONS
from hami_dra.contract.settings import DEFAULT_SETTINGS, decode_settings
from hami_dra.policy.charge import Charge, ClaimUse, Take
from hami_dra.policy.quota import (
    RESERVED_SECONDS,
    Amounts,
    PodStates,
    Quota,
    Reservation,
    admit,
    build_patch,
    due_at,
    has_expired,
    list_quota_keys,
    name_claims,
    read_quota,
    recount,
)

_KEYS = list_quota_keys(DEFAULT_SETTINGS.nvidia)
_NOW = 1_000_000.0


def _body(hard: Mapping[str, Any], used: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": "gpus", "resourceVersion": "7"},
        "spec": {"hard": {f"limits.nvidia.com/{key}": value for key, value in hard.items()}},
        "status": {
            "used": {f"limits.nvidia.com/{key}": value for key, value in (used or {}).items()}
        },
    }


def _quota(hard: Mapping[str, Any], used: Mapping[str, Any] | None = None) -> Quota:
    quota = read_quota(_body(hard, used), _KEYS)
    assert quota is not None
    return quota


def _admit(quota: Quota, **wanted: Charge) -> Quota:
    return admit(quota, wanted, keys=_KEYS, now=_NOW)


def _claim(uid: str, mib: int, made_for: str = "") -> ClaimUse:
    return ClaimUse(uid, made_for, ((Take(1, mib, 0),),))


def _recount(
    quota: Quota,
    *claims: ClaimUse,
    pods: PodStates | None = None,
    now: float = _NOW,
    listed: Collection[str] | None = None,
) -> Quota:
    states = pods or PodStates()
    return recount(quota, claims, states, keys=_KEYS, now=now, largest_mib=None, listed=listed)


def test_quotas_that_say_nothing_about_us_are_none_of_ours() -> None:
    assert read_quota(_body({}), _KEYS) is None
    other = _body({})
    other["spec"]["hard"] = {"requests.nvidia.com/gpu": "1", "pods": "5"}
    assert read_quota(other, _KEYS) is None


@pytest.mark.parametrize(
    "spec", [{"scopes": ["Terminating"]}, {"scopeSelector": {"matchExpressions": [{}]}}]
)
def test_a_quota_with_scopes_counts_no_claims(spec: dict[str, Any]) -> None:
    body = _body({"gpu": "1"})
    body["spec"] |= spec
    assert read_quota(body, _KEYS) is None


def test_quantities_are_numbers_of_the_unit() -> None:
    quota = _quota({"gpu": 2, "gpumem": "50k"}, {"gpumem": "1e3"})
    assert quota.hard == (2, 50_000, None)
    assert quota.used == (None, 1000, None)
    assert not quota.counted


def test_keys_follow_the_operators_names_and_unit() -> None:
    settings = decode_settings(
        {"nvidia": {"resourceMemoryName": "hami.io/mem", "memoryFactor": 1024}}
    )
    keys = list_quota_keys(settings.nvidia)
    assert keys.names == (
        "limits.nvidia.com/gpu",
        "limits.hami.io/mem",
        "limits.nvidia.com/gpucores",
    )
    assert keys.measure(Charge(2, 2049, 30)) == (2, 3, 30)


def test_what_fits_is_counted_and_noted() -> None:
    quota = _quota({"gpu": 2, "gpumem": 3000}, {"gpu": 1, "gpumem": 1000})
    changed = _admit(quota, claim=Charge(1, 2000, 50))
    assert changed.used == (2, 3000, None)
    assert changed.reservations == {
        "claim": Reservation(int(_NOW) + RESERVED_SECONDS, (1, 2000, 50))
    }
    assert _admit(changed, claim=Charge(1, 2000, 50)) is changed, "once only"
    patch = build_patch(changed, _KEYS)
    assert patch["metadata"]["resourceVersion"] == "7"
    assert patch["status"] == {
        "used": {"limits.nvidia.com/gpu": "2", "limits.nvidia.com/gpumem": "3000"}
    }
    stored = _body({"gpu": 2, "gpumem": 3000}, {"gpu": 2, "gpumem": 3000})
    stored["metadata"]["annotations"] = patch["metadata"]["annotations"]
    assert read_quota(stored, _KEYS) == changed


@pytest.mark.parametrize(
    ("hard", "used", "charge", "says"),
    [
        (
            {"gpumem": 3000},
            {"gpumem": 2500},
            Charge(1, 501, 0),
            (
                "exceeded quota: gpus, requested: limits.nvidia.com/gpumem=501, used: "
                "limits.nvidia.com/gpumem=2500, limited: limits.nvidia.com/gpumem=3000"
            ),
        ),
        (
            {"gpu": 1, "gpucores": 100, "gpumem": 9999},
            {"gpu": 1, "gpucores": 60, "gpumem": 0},
            Charge(1, 10, 50),
            (
                "requested: limits.nvidia.com/gpu=1,limits.nvidia.com/gpucores=50, used: "
                "limits.nvidia.com/gpu=1,limits.nvidia.com/gpucores=60, limited: "
                "limits.nvidia.com/gpu=1,limits.nvidia.com/gpucores=100"
            ),
        ),
        ({"gpu": 0}, {"gpu": 0}, Charge(1, 1, 0), "limited: limits.nvidia.com/gpu=0"),
    ],
)
def test_what_does_not_fit_says_how_much_there_is(
    hard: dict[str, int], used: dict[str, int], charge: Charge, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        _admit(_quota(hard, used), claim=charge)
    assert says in str(caught.value)


def test_a_quota_that_is_full_for_one_key_lets_pass_what_does_not_take_of_it() -> None:
    quota = _quota({"gpucores": 100}, {"gpucores": 130})
    assert _admit(quota, claim=Charge(1, 1000, 0)).used == (None, None, 130)
    assert _admit(quota) is quota
    assert _admit(quota, claim=Charge()) is quota


def test_what_cannot_be_told_is_asked_again() -> None:
    with pytest.raises(RetryError, match="has not been counted yet"):
        _admit(_quota({"gpu": 1, "gpumem": 5}, {"gpu": 0}), claim=Charge(1))
    whole = Charge(1, 0, 100, unsized=True)
    with pytest.raises(RetryError, match="its memory is not known; ask for a number of MiB"):
        _admit(_quota({"gpumem": 99}, {"gpumem": 0}), claim=whole)
    assert _admit(_quota({"gpu": 1}, {"gpu": 0}), claim=whole).used == (1, None, None)


def test_as_many_are_under_way_as_an_object_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hami_dra.policy.quota._MOST_RESERVATIONS", 1)
    quota = _admit(_quota({"gpu": 5}, {"gpu": 0}), a=Charge(1))
    with pytest.raises(RetryError, match="1 claims under way"):
        _admit(quota, b=Charge(1))


@pytest.mark.parametrize("text", ["{", "[]", '{"a":[1,[1,-1,1]]}', '{"a":[1]}', '{"a":5}', 7])
def test_notes_that_were_spoilt_count_as_none(text: Any) -> None:
    body = _body({"gpu": 1}, {"gpu": 1})
    body["metadata"]["annotations"] = {ANNOTATION_RESERVATIONS: text}
    quota = read_quota(body, _KEYS)
    assert quota is not None
    assert quota.reservations == {}


def test_a_reservation_goes_when_its_claim_is_there() -> None:
    quota = _admit(_quota({"gpumem": 9000}, {"gpumem": 0}), direct=Charge(1, 1000))
    quota = admit(quota, {"pod/gpu": Charge(1, 2000)}, keys=_KEYS, now=_NOW)
    assert _recount(quota) == quota
    counted = _recount(quota, _claim("direct", 1000), _claim("x", 1500, "pod/gpu"))
    assert counted.used == (None, 2500, None), "as much as the claims take now"
    assert counted.reservations == {}
    assert build_patch(counted, _KEYS)["metadata"]["annotations"] == {ANNOTATION_RESERVATIONS: None}


def test_a_reservation_goes_with_its_pod_and_stays_while_the_pod_waits() -> None:
    quota = admit(_quota({"gpu": 9}, {"gpu": 0}), {"pod/gpu": Charge(1)}, keys=_KEYS, now=_NOW)
    assert _recount(quota, pods=PodStates(gone={"pod"})).used == (0, None, None)
    later = _NOW + RESERVED_SECONDS
    waiting = PodStates(awaiting={"pod"})
    assert _recount(quota, pods=waiting, now=_NOW + 1) == quota
    renewed = _recount(quota, pods=waiting, now=later)
    assert renewed.reservations["pod/gpu"].until == later + RESERVED_SECONDS
    assert _recount(renewed, pods=waiting, now=later) == renewed


def test_a_reservation_ends_by_its_time_only_on_fresh_news() -> None:
    quota = _admit(_quota({"gpu": 9}, {"gpu": 0}), claim=Charge(1))
    later = _NOW + RESERVED_SECONDS
    assert not has_expired(quota, later - 1)
    assert has_expired(quota, later)
    assert _recount(quota, now=later) == quota
    assert _recount(quota, now=later, listed=name_claims([])).used == (0, None, None)
    # Its claim is there, but the watch has not shown it yet.
    kept = _recount(quota, now=later, listed=name_claims([_claim("claim", 5)]))
    assert (kept.used, kept.reservations["claim"].until) == (quota.used, later + RESERVED_SECONDS)


def test_when_to_look_again() -> None:
    quota = _admit(_quota({"gpu": 9}, {"gpu": 0}), claim=Charge(1))
    until = int(_NOW) + RESERVED_SECONDS
    first = due_at(quota, _NOW)
    assert first is not None
    assert _NOW < first < until
    assert due_at(quota, first) == until
    assert due_at(quota, until) == until + 1
    assert due_at(_quota({"gpu": 9}), _NOW) is None


def test_sums_beyond_what_a_quantity_can_be_are_cut() -> None:
    counted = _recount(_quota({"gpumem": 1}), _claim("a", 2**62), _claim("b", 2**62 + 5))
    assert counted.used == (None, 2**63 - 1, None)


_AMOUNTS = st.tuples(st.integers(0, 3), st.integers(0, 5000), st.integers(0, 200))


@given(st.dictionaries(st.text(max_size=8), st.tuples(st.integers(0, 2**40), _AMOUNTS)))
def test_notes_are_read_as_they_were_written(notes: dict[str, tuple[int, Amounts]]) -> None:
    quota = _quota({"gpu": 1}, {"gpu": 1})
    noted = {key: Reservation(until, amounts) for key, (until, amounts) in notes.items()}
    patch = build_patch(replace(quota, reservations=noted), _KEYS)
    body = _body({"gpu": 1}, {"gpu": 1})
    body["metadata"]["annotations"] = patch["metadata"]["annotations"]
    read = read_quota(body, _KEYS)
    assert read is not None
    assert read.reservations == noted


# --- any interleaving of webhook processes, a controller and the claim controller

_HARD = 5


@dataclass
class _World:
    """One quota in an API server that refuses writes to outdated versions, and who knows what.

    Attributes:
        stored: What the API server has.
        versions: All that it ever had, for those who are behind.
        pods: Admitted, with what their claim will take.
        claims: In the API server.
        seen_claims: As far as the controller knows.
        waiting: Pods that it has seen without their claim, and whose claim it has not seen since.
    """

    stored: Quota
    now: float = _NOW
    versions: list[Quota] = field(default_factory=list)
    pods: dict[str, int] = field(default_factory=dict)
    claims: dict[str, ClaimUse] = field(default_factory=dict)
    seen_claims: dict[str, ClaimUse] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    admitted: int = 0

    def write(self, quota: Quota) -> bool:
        """Store a quota unless somebody was faster."""
        if quota.version != self.stored.version:
            return False
        self.stored = replace(quota, version=str(int(self.stored.version) + 1))
        self.versions.append(self.stored)
        return True

    def promised(self) -> int:
        """Return what pods and claims that exist take or will take."""
        made = {claim.made_for for claim in self.claims.values()}
        waiting = sum(mib for pod, mib in self.pods.items() if f"{pod}/gpu" not in made)
        return waiting + sum(claim.takes[0][0].memory_mib or 0 for claim in self.claims.values())

    def admit(self, mib: int, behind: int, *, stored: bool) -> None:
        """Admit a pod by a replica that is ``behind`` versions late; it may not get stored."""
        known = self.versions[max(len(self.versions) - 1 - behind, 0)]
        name = f"pod-{self.admitted}"
        for _ in range(2):  # what it knows, then what the API server has
            try:
                changed = admit(known, {f"{name}/gpu": Charge(1, mib)}, keys=_KEYS, now=self.now)
            except UserError:
                return
            if self.write(changed):
                self.admitted += 1
                if stored:
                    self.pods[name] = mib
                return
            known = self.stored

    def see_pods(self) -> None:
        """Let the controller see which pods have no claim."""
        made = {claim.made_for for claim in self.claims.values()}
        self.waiting |= {pod for pod in self.pods if f"{pod}/gpu" not in made}

    def make_claim(self) -> None:
        """Make the claim of the oldest pod that waits, as the claim controller does."""
        made = {claim.made_for for claim in self.claims.values()}
        for pod, mib in self.pods.items():
            if f"{pod}/gpu" not in made:
                self.claims[f"claim-{pod}"] = _claim(f"claim-{pod}", mib, f"{pod}/gpu")
                return

    def delete_pod(self) -> None:
        """Delete the oldest pod, and its claim if there is one."""
        if self.pods:
            pod = next(iter(self.pods))
            del self.pods[pod]
            self.claims.pop(f"claim-{pod}", None)
            self.gone.add(pod)

    def count(self, behind: int) -> None:
        """Let the controller count what it knows."""
        known = self.versions[max(len(self.versions) - 1 - behind, 0)]
        self.write(self.recounted(known))

    def recounted(self, quota: Quota) -> Quota:
        """Return the controller's count, over a fresh list where one is needed."""
        claims = [*self.seen_claims.values()]
        self.waiting -= self.gone | {claim.made_for.partition("/")[0] for claim in claims}
        claims += [_claim("", self.pods[pod], f"{pod}/gpu") for pod in self.waiting]
        states = PodStates(awaiting=self.waiting, gone=self.gone)
        counted = _recount(quota, *claims, pods=states, now=self.now)
        if not has_expired(counted, self.now):
            return counted
        listed = name_claims(self.claims.values())
        return _recount(quota, *claims, pods=states, now=self.now, listed=listed)


_ADMIT = st.tuples(
    st.just("admit"), st.integers(1, 3), st.integers(0, 3), st.sampled_from([True, True, False])
)
_STEPS = st.lists(
    st.one_of(
        _ADMIT,
        _ADMIT,
        st.tuples(st.just("claim")),
        st.tuples(st.just("delete")),
        st.tuples(st.just("see claims")),
        st.tuples(st.just("see pods")),
        st.tuples(st.just("count"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.integers(1, RESERVED_SECONDS)),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=400)
@given(_STEPS)
def test_whatever_happens_when_no_more_is_promised_than_the_quota_allows(
    steps: list[tuple[Any, ...]],
) -> None:
    start = Quota("team", "gpus", "1", (None, _HARD, None), (None, 0, None), {})
    world = _World(start, versions=[start])
    for step in steps:
        match step:
            case ("admit", mib, behind, stored):
                world.admit(mib, behind, stored=stored)
            case ("claim",):
                world.make_claim()
            case ("delete",):
                world.delete_pod()
            case ("see claims",):
                world.seen_claims = dict(world.claims)
            case ("see pods",):
                world.see_pods()
            case ("count", behind):
                world.count(behind)
            case ("wait", seconds):
                # A pod is stored, or not, long before its reservation ends; and seen to wait.
                world.see_pods()
                world.now += seconds
                world.count(0)
        assert world.promised() <= _HARD
        used = world.stored.used[1]
        assert used is not None
        assert world.promised() <= used <= _HARD
    # Once all is known and nothing is under way, the count is what exists, and stays so.
    world.seen_claims = dict(world.claims)
    world.see_pods()
    world.now += RESERVED_SECONDS
    world.count(0)
    assert world.stored.used[1] == world.promised()
    assert world.recounted(world.stored) == world.stored
