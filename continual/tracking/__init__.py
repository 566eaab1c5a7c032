"""Following a run elsewhere while it goes on: TensorBoard, Weights & Biases, MLflow, or a tracker of a user's own."""
