"""What is wrong with a card: from what the driver reported to the faults that hold now.

Two kinds of report. An event is said once, and nobody says when its cause is gone: a suspected
card is trusted again after it has been quiet, a card that needs a reset after it had one. What is
polled has to be bad, or good, several looks in a row, because one look may fall into a reset.

A reset shows in two ways: the driver lost the card and described it again, or it asked for an
action and asks no more (newer drivers only).
"""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from hami_dra.contract import names
from hami_dra.contract.healthconfig import (
    FATAL_XIDS,
    IGNORED_XIDS,
    HealthConfig,
    XidClass,
    XidTable,
)
from hami_dra.policy.taints import Taint

_MOST_NUMBERS: Final = 32
"""Different XIDs that are remembered of a card."""
_ACTIONS: Final = {
    1: "gpu-reset",
    2: "node-reboot",
    3: "drain-p2p",
    4: "drain-and-reset",
    5: "recover-imex-domain",
    6: "bus-reset",
    7: "system-reboot",
}
"""nvmlDeviceGpuRecoveryAction_t (nvml.h); 0 is none."""
LOST_MESSAGE: Final = (
    "the driver does not describe the card any more; look at dmesg for Xid messages"
)


@dataclass(frozen=True, slots=True)
class CardEvent:
    """Something that the driver reported of a card once.

    Attributes:
        uuid: The card; "" if the driver did not say which.
        kind: An XID, or an error that memory could not correct.
        number: The XID; 0 for other kinds.
    """

    uuid: str
    kind: Literal["xid", "ecc"]
    number: int = 0


@dataclass(frozen=True, slots=True)
class CardVitals:
    """What a card answered when it was asked; ``None`` is no answer.

    Attributes:
        uncorrected_errors: Errors that memory could not correct since the driver was loaded.
        remap_failed: Whether a broken row could not be replaced by a spare one.
        recovery_action: What the driver wants done (`_ACTIONS`); 0: nothing.
    """

    uncorrected_errors: int | None = None
    remap_failed: bool | None = None
    recovery_action: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a card now.

    Attributes:
        taint: As it is published.
        message: For a person.
        until: Monotonic time at which it ends if nothing more happens; ``None``: not by time.
    """

    taint: Taint
    message: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Streak:
    """Looks in a row, and what they mean with hysteresis."""

    bad: int = 0
    good: int = 0
    marked: bool = False

    def note(self, answer: bool | None, health: HealthConfig) -> "Streak":  # noqa: FBT001
        """Return the streak after a look; no answer changes nothing."""
        if answer is None:
            return self
        bad, good = (self.bad + 1, 0) if answer else (0, self.good + 1)
        marked = good < health.good_looks if self.marked else bad >= health.bad_looks
        return Streak(bad, good, marked)


@dataclass(frozen=True, slots=True)
class Report:
    """An event that is remembered.

    Attributes:
        number: The XID; 0 for other kinds.
        last: Monotonic time at which it was reported last.
        good_looks: Looks since in which the driver wanted nothing done, in a row.
    """

    number: int
    last: float
    good_looks: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CardState:
    """What is remembered of one card.

    Attributes:
        xids: One report of each number, the latest last.
        ecc: The latest error that memory could not correct.
        errors: Counter of such errors at the last look.
        remap: Looks for rows that could not be replaced.
        reset: Looks for an action that the driver wants.
        action: The last such action.
        answers: Whether the driver says at all what it wants done.
    """

    xids: tuple[Report, ...] = ()
    ecc: Report | None = None
    errors: int | None = None
    remap: Streak = Streak()
    reset: Streak = Streak()
    action: int = 0
    answers: bool = False


def classify_xid(number: int, table: XidTable) -> XidClass:
    """Return what an XID means: by the table, else by the defaults."""
    lists: tuple[tuple[XidClass, tuple[int, ...]], ...] = (
        ("ignored", table.ignored),
        ("suspect", table.suspect),
        ("fatal", table.fatal),
        ("ignored", IGNORED_XIDS),
        ("fatal", FATAL_XIDS),
    )
    return next((name for name, numbers in lists if number in numbers), table.others)


def note_event(state: CardState, event: CardEvent, now: float) -> CardState:
    """Return the state after an event."""
    report = Report(event.number, now)
    if event.kind == "ecc":
        return replace(state, ecc=report)
    others = [each for each in state.xids if each.number != event.number]
    return replace(state, xids=(*others, report)[-_MOST_NUMBERS:])


def note_vitals(
    state: CardState, vitals: CardVitals, now: float, health: HealthConfig
) -> CardState:
    """Return the state after a look."""
    errors, action = vitals.uncorrected_errors, vitals.recovery_action
    grown = errors is not None and state.errors is not None and errors > state.errors
    return replace(
        state,
        xids=tuple(_note_action(report, action) for report in state.xids),
        ecc=Report(0, now) if grown else state.ecc,
        errors=state.errors if errors is None else errors,
        remap=state.remap.note(vitals.remap_failed, health),
        reset=state.reset.note(None if action is None else action != 0, health),
        action=action or state.action,
        answers=state.answers or action is not None,
    )


def _note_action(report: Report, action: int | None) -> Report:
    if action is None:
        return report
    return replace(report, good_looks=report.good_looks + 1 if action == 0 else 0)


def note_return(state: CardState) -> CardState:
    """Return the state of a card that was lost and is described again.

    That was a reset, unless the driver knows better: one that says what it wants done is believed,
    because a card may have hung and gone on. Nothing has to be quiet any longer then.
    """
    if not state.answers:
        return CardState(errors=state.errors)
    return replace(state, xids=tuple(replace(each, last=-math.inf) for each in state.xids))


def find_lost(health: HealthConfig) -> Fault:
    """Return the fault of a card that the driver does not describe."""
    return Fault(Taint(names.TAINT_LOST, "not-described", health.lost_effect), LOST_MESSAGE)


def list_faults(state: CardState, now: float, health: HealthConfig) -> tuple[Fault, ...]:
    """Return what is wrong with a card that is described, at most one fault for each taint key."""
    faults = []
    if (xid := _find_xid(state, now, health)) is not None:
        faults.append(xid)
    quiet = health.quiet_seconds
    if state.ecc is not None and now < state.ecc.last + quiet:
        faults.append(
            Fault(
                Taint(names.TAINT_ECC, "uncorrected", health.suspect_effect),
                f"its memory had an error that it could not correct; the mark ends after "
                f"{quiet:g} s without another",
                state.ecc.last + quiet,
            )
        )
    if state.remap.marked:
        faults.append(
            Fault(
                Taint(names.TAINT_MEMORY, "remap-failed", health.fatal_effect),
                "a broken row of its memory cannot be replaced: the card has to be exchanged",
            )
        )
    if state.reset.marked:
        wanted = _ACTIONS.get(state.action, f"action-{state.action}")
        faults.append(
            Fault(
                Taint(names.TAINT_RECOVERY, wanted, health.fatal_effect),
                f"the driver asks for {wanted}",
            )
        )
    return tuple(faults)


def forget_ended(state: CardState, now: float, health: HealthConfig) -> CardState:
    """Return the state without reports whose time is over: a longer time later is not theirs."""
    quiet = health.quiet_seconds
    over = state.ecc is not None and now >= state.ecc.last + quiet
    return replace(
        state,
        xids=tuple(
            report
            for report in state.xids
            if now < report.last + quiet
            or (
                classify_xid(report.number, health.xids) == "fatal"
                and not _is_reset(report, health)
            )
        ),
        ecc=None if over else state.ecc,
    )


def _is_reset(report: Report, health: HealthConfig) -> bool:
    return report.good_looks >= health.good_looks


def _find_xid(state: CardState, now: float, health: HealthConfig) -> Fault | None:
    """Return the worst report that still holds: a fatal one before the latest suspicion."""
    suspected: Fault | None = None
    for report in reversed(state.xids):
        number, quiet_at = report.number, report.last + health.quiet_seconds
        kind = classify_xid(number, health.xids)
        if kind == "fatal" and (now < quiet_at or not _is_reset(report, health)):
            return Fault(
                Taint(names.TAINT_XID, str(number), health.fatal_effect),
                f"XID {number}: the card has to be reset (dmesg has the driver's words)",
            )
        if kind == "suspect" and now < quiet_at and suspected is None:
            suspected = Fault(
                Taint(names.TAINT_XID, str(number), health.suspect_effect),
                f"XID {number}: the card is suspected of a fault (dmesg has the driver's words); "
                f"the mark ends after {health.quiet_seconds:g} s without another",
                quiet_at,
            )
    return suspected


def find_next_change(state: CardState, now: float, health: HealthConfig) -> float | None:
    """Return the monotonic time at which time alone ends a fault; ``None``: never."""
    reports = [*state.xids, *([state.ecc] if state.ecc else [])]
    ends = [report.last + health.quiet_seconds for report in reports]
    return min((end for end in ends if end > now), default=None)
