"""Names in a sweep's tables."""

BASE, SLICES, RAW = "3-D windows, post-processed", "2-D windows", "no post-processing"
WIDTH, ENSEMBLE, SCORE = "width", "ensemble", "score"
