"""What one wants to know of a model: FLOPs, speed, accuracy, pictures."""
