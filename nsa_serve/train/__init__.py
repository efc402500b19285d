"""Training: from a preset and text, or a built-in task, to a folder that serves."""
