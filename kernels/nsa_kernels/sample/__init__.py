"""From rows of logits to token ids: what is drawn is exact, and the same in any batch."""
