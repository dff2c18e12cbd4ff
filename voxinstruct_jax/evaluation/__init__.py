"""Scores and reports: reads results and their audio, imports no model, so that one judge serves every system."""
