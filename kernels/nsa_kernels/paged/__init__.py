"""Whole attention layers over the paged caches, put together from the stages."""
