"""Experiments: settings from the command line, folders of runs, training and evaluation, and the zoo."""
