"""What every stage shares: models, tokenizers, trainers, guards, checkpoints, launching."""
