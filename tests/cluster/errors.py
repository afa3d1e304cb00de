"""What can go wrong with the test cluster, said so that a person can act on it."""

from __future__ import annotations


class ClusterError(Exception):
    """The test cluster cannot do what was asked; the message says what to look at."""


class PreflightError(ClusterError):
    """The machine lacks something; the message has one line for each thing."""


class ToolchainError(ClusterError):
    """A pinned tool could not be built."""


class CommandError(ClusterError):
    """A command in the cluster failed or took too long; its output is in the message."""


class WaitError(ClusterError):
    """A condition did not come true in time; the last state seen is in the message."""
