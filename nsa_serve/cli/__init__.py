"""The command line, `nsa-serve`: the one place where engine and HTTP API are put together.

One module per command; `app` lists them. Importing any of them loads no torch.
"""
