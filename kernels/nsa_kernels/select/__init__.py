"""From compressed attention to the blocks that a query reads."""
