"""Admission: rewrites pods, checks claims. Decisions are policy's; this room carries them."""
