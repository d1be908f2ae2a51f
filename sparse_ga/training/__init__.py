"""Training of our own small networks: losses, a resumable loop, checkpoints and metrics without pickle."""
