"""The HTTP API of nsa-serve: OpenAI's endpoints over an engine."""
