"""Models on disk, checked, converted, fetched and loaded. To check and read what is not a weight
imports no torch; weights, checkpoint, convert, pickled and write_tensors do.
"""
