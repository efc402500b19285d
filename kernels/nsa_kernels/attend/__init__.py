"""Exact attention over chosen blocks of the paged cache."""
