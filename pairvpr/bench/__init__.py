"""`pairvpr bench`: what an answer takes on this machine, step by step, and what it should take on others."""
