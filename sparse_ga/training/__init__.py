"""Training of our own small networks: losses, optimisers, a resumable loop that fits a given time, checkpoints."""
