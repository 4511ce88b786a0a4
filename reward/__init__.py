"""What is good: reward models, reward functions and the data they learn from."""
