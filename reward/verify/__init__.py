"""Rewards that check an answer instead of judging it: mathematics, formats, programs."""
