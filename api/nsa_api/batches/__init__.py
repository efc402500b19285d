"""Requests that come from a file and not from a connection."""
