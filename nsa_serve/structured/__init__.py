"""Output that must match a grammar: its source checked, compiled, and followed token by token."""
