"""Measurements of policies and critics while training and after it, their verdicts and the report."""
