"""What people said: comparisons, their store and how far they agree."""
