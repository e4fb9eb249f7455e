"""Measurements of policies and critics, while training and after it, and what follows of them."""
