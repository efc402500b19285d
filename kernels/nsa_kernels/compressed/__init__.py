"""Attention over compressed tokens, and what it says about the importance of blocks."""
