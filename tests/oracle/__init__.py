"""Our slices and claims before kube-scheduler's own allocator, without a cluster."""
