"""What the queue in this process needs beside its jobs: policies, webhooks and metrics."""
