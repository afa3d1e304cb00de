"""What every process needs: supervision, logs, a clock, health endpoints, retries."""
