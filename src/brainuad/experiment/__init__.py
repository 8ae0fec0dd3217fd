"""Experiments: their settings as typed, their folders, and what trains, evaluates and compares with them."""
