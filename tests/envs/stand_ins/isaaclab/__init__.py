"""A stand-in for Isaac Lab 3: what the adapter calls, and in which order it may."""
