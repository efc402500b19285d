"""Between text and token ids: tokenizers, chat templates, streams. Imports no torch."""
