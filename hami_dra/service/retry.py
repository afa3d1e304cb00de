"""Try again, later and later, until a deadline."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def retry(
    attempt: Callable[[], Awaitable[T]],
    *,
    retryable: Callable[[Exception], bool],
    budget_seconds: float,
    first_delay_seconds: float = 0.1,
    longest_delay_seconds: float = 5.0,
) -> T:
    """Call until it succeeds, fails for good, or the budget is spent.

    The last error is raised as it is. Cancellation is never caught. A delay is never longer than
    what is left of the budget, and no attempt starts after it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + budget_seconds
    delay = first_delay_seconds
    while True:
        try:
            return await attempt()
        except Exception as error:
            left = deadline - loop.time()
            if left <= 0 or not retryable(error):
                raise
        # Full jitter: many callers that failed together must not return together.
        await asyncio.sleep(min(left, delay * random.uniform(0.5, 1.0)))  # noqa: S311
        delay = min(delay * 2, longest_delay_seconds)
