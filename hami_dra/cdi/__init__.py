"""Container Device Interface: what a runtime puts into containers, as JSON files."""
