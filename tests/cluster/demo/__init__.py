"""``python -m tests.cluster.demo``: the main job on a real Kubernetes, told step by step."""
