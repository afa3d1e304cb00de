"""A real Kubernetes on one machine, without Docker and without a registry.

The control plane, a node with containerd and runc, and everything that runs on it live in their own
mount, network and PID namespaces and in one temporary directory. Nothing outside is changed, and
the kernel ends all of it when the first process of the PID namespace ends.

This package knows nothing of GPUs and nothing of hami-dra: it may be used by tests and by the demo,
and imports neither.
"""
