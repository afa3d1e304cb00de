"""Speed and memory of the node process, beside their targets."""
