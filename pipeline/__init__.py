"""Raw datasets in, shards out: sources read raw samples, `formats` makes the four tensors, `run` writes the shards."""
