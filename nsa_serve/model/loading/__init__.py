"""Models on disk, checked, converted, fetched and loaded; weights.py alone imports torch."""
