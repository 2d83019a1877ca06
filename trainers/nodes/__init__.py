"""Graph nodes for training: they describe a run, start it in a process of its own and show how it goes."""
