"""Offline batch work: `requests` reads what is asked for, `run` speaks it, resumes and writes the results."""
