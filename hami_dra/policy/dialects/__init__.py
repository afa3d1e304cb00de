"""Ways in which people write a fractional GPU, one small module each.

Every dialect turns a `PodView` into a `PodRequest`; nothing above it knows who spoke which.
"""
