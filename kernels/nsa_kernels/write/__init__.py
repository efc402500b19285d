"""New keys, values and compressed slots into their pages."""
