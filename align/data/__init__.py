"""Data: any format from anywhere, checked, cleaned, mixed and split by prompt, with a card.

`load_splits` does all of it for a stage; `fit_length` checks the rows as they will be tokenised;
`align.data.tokens` says which tokens a prompt and a completion have.
"""

from align.data.card import DataCard, SourceCard
from align.data.lengths import Lengths, TokenStatistics, fit_length, is_conversational
from align.data.load import Splits, load_splits
from align.data.rows import Kind, normalise, prompt_key
from align.data.tokens import (
    check_tokenizer,
    encode_pair,
    encode_pairs,
    encode_prompt,
    encode_prompts,
    end_of_turn_id,
)

__all__ = [
    "DataCard",
    "Kind",
    "Lengths",
    "SourceCard",
    "Splits",
    "TokenStatistics",
    "check_tokenizer",
    "encode_pair",
    "encode_pairs",
    "encode_prompt",
    "encode_prompts",
    "end_of_turn_id",
    "fit_length",
    "is_conversational",
    "load_splits",
    "normalise",
    "prompt_key",
]
