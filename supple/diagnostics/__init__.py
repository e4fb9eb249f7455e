"""Measurements of critics: recovery of flows, representations, plasticity."""
