"""The only room with NVML, /sys and the driver's own libraries."""
