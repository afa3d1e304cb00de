"""Tests; the names of the folders say of what kind."""
