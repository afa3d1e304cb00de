"""Programs of several userlands, with libvgpu and without: ``make test-userlands``."""
