"""Presets of experiments: Hydra configuration files."""
