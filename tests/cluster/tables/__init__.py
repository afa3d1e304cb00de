"""Runs golden cases to an allocation by the real scheduler (tests/golden/README.md)."""
