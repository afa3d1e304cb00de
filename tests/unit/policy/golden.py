"""The golden tables, for the tests of the policy."""

from tests.golden.rows import build_pod, load_cases, name_case

__all__ = ["build_pod", "load_cases", "name_case"]
