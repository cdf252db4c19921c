"""What is done with a trained model: its test, its figures, its use."""
