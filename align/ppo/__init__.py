"""PPO: advantages, objectives and KL as pure functions; experience; the trainer."""
