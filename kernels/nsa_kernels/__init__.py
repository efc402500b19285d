"""Attention over paged caches: the three paths of Native Sparse Attention, and dense.

Knows shapes, pages and positions; knows no request, no layer and no model. Every stage has a
`reference.py` in plain torch, which runs on any device; kernels stand beside it.
"""
