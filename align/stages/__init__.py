"""One file a stage, each a short story: seed, model, data, train, evaluate, save."""
