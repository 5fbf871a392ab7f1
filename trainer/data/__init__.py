"""Shards into the batches of each step."""
