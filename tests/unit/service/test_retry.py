"""Retries stop at success, at a permanent error, and at the end of the budget."""

import asyncio

import pytest

from hami_dra.service.retry import retry

pytestmark = pytest.mark.looptime


class Flaky:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self) -> str:
        """Fail or return."""
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError("not yet")
        return "done"


async def test_transient_errors_are_outlived() -> None:
    flaky = Flaky(3)

    assert await retry(flaky, retryable=lambda _: True, budget_seconds=30) == "done"
    assert flaky.calls == 4


async def test_a_permanent_error_is_raised_at_once() -> None:
    flaky = Flaky(3)

    with pytest.raises(OSError, match="not yet"):
        await retry(flaky, retryable=lambda _: False, budget_seconds=30)

    assert flaky.calls == 1


async def test_the_budget_ends_it() -> None:
    start = asyncio.get_running_loop().time()

    with pytest.raises(OSError, match="not yet"):
        await retry(Flaky(10**6), retryable=lambda _: True, budget_seconds=30)

    elapsed = asyncio.get_running_loop().time() - start
    assert 29 <= elapsed <= 31
