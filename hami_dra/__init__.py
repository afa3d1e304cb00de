"""hami-dra: share NVIDIA GPUs on stock Kubernetes through Dynamic Resource Allocation."""

__version__ = "0.1.0"
