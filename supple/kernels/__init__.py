"""Operators with a plain reference each; one folder per operator."""
