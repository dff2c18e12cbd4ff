"""Offline batch work: `plan` cuts a request file into units, `units` speaks them, `run` sees a job to its end."""
