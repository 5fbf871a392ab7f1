"""How good a model is on shards: every object of every sample once, on any number of processes."""
