"""The kubelet plugin of one node: registration, slices, Prepare and Unprepare, and its journal."""
