"""Checkpoints: `run` keeps a training run's states, `weights` what synthesis loads."""
