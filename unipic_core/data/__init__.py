"""Training data: samples of a prompt, a target picture and any number of reference pictures."""
