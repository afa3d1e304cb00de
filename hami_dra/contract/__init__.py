"""Words that other programs read: names, layouts, settings. No logic, no I/O."""
