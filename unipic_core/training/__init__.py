"""Training loops: plain PyTorch through accelerate, one task per file, exact resume."""
