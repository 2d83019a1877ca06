"""Training: graph nodes, and the modules that `accelerate launch -m` starts."""
