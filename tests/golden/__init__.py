"""Golden tables: what people write, and what must come of it."""
