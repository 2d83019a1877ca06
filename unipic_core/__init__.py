"""Models, samplers, rewards and training loops of UniPic in plain PyTorch, usable without ComfyUI."""
