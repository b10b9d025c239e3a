"""A run: planned, trained, written down, resumed, exported and replayed."""
