"""A stand-in for mjlab: its registry, and an environment whose caller makes the resets."""
