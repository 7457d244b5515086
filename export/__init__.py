"""Export a checkpoint to a bundle: trace graphs, choose their precision, and compare them with the network."""
