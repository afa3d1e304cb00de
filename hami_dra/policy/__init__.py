"""Decisions, and nothing else: no await, clock, files, environment or logging.

What a person wrote goes in; a frozen answer, a reason or a `UserError` comes out.
"""
