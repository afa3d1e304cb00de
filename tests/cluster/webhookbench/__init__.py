"""How fast admission is, and how much memory it takes: ``make bench-webhook``."""
