"""Pages to look at: what a map holds, and what became of a run."""
