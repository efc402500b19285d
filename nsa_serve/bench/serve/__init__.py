"""Load tests of any OpenAI-compatible server: arrivals, prompts, a client, statistics, reports."""
