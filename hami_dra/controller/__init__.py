"""What must happen once per cluster: certificates, the webhook's registration, the DeviceClass."""
