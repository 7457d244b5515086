"""From a checkpoint to a bundle: what is traced, in which precision, and the proof that nothing changed."""
