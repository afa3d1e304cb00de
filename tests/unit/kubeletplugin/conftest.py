"""Fixtures of the kubelet plugin library's tests."""

from tests.surroundings import base, cluster

__all__ = ["base", "cluster"]
