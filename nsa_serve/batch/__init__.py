"""OpenAI's batch files: read line by line, answered many at once, written so a crash harms none."""
