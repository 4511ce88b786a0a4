"""Evidence: win rates, text and policy metrics, reward-model quality, and how sure one can be."""
