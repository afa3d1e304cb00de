"""Fixtures of the tests with a real node process."""

from tests.surroundings import base, cluster

__all__ = ["base", "cluster"]
