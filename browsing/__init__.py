"""The page on which people look through shard sets: `cli.py browse`. It reads sets, and writes marks alone."""
