"""Models on disk: folders are checked here, converted, fetched, and loaded (weights.py alone imports
torch)."""
