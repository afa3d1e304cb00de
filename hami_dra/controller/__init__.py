"""What must happen once per cluster: certificates, registrations, and the care for templates."""
