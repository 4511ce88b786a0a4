"""Tokens as TRL makes them: compared with the columns of TRL's own trainers."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from align.data.tokens import (
    check_sample,
    check_tokenizer,
    encode_pair,
    encode_pairs,
    encode_prompt,
    encode_text,
    end_of_turn_id,
)
from align.errors import DataError, ModelError


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    {
        "prompt": [turn("user", "What color is the sky?")],
        "chosen": [turn("assistant", "It is blue.")],
        "rejected": [turn("assistant", "It is green, I think.")],
    },
    {
        "prompt": [
            turn("system", "You are helpful."),
            turn("user", "Where is my order?"),
            turn("assistant", "It was sent."),
            turn("user", "When?"),
        ],
        "chosen": [turn("assistant", "On Monday.\n")],
        "rejected": [turn("assistant", "Ünknown → 3")],
    },
]
# The second prompt ends inside a word, so that tokens merge across the boundary.
PLAIN = [
    {"prompt": "What is 2 + 2?\n", "chosen": "It is 4.", "rejected": "It is 6."},
    {"prompt": "Open the sett", "chosen": "ings", "rejected": "er <|im_end|>"},
]
TOKENIZERS = {
    "chatml": ("chatml", False),
    "tight": ("tight", False),
    "bos": ("chatml", True),
}


def tiny(cls, tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=1,
    )
    return cls(config)


def arguments(cls, folder):
    return cls(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, max_length=None)


@pytest.mark.parametrize("rows", [CONVERSATIONS, PLAIN], ids=["conversation", "plain"])
@pytest.mark.parametrize("name", TOKENIZERS)
class TestAgainstTRL:
    def test_sft(self, name, rows, make_tokenizer, tmp_path):
        tokenizer = make_tokenizer(*TOKENIZERS[name])
        data = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        trainer = SFTTrainer(
            tiny(LlamaForCausalLM, tokenizer),
            arguments(SFTConfig, tmp_path),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
        for row, theirs in zip(data, trainer.train_dataset, strict=True):
            prompt, completion = encode_pair(row["prompt"], row["completion"], tokenizer)
            assert prompt + completion == theirs["input_ids"]
            assert [-100] * len(prompt) + completion == theirs["labels"]

    def test_dpo(self, name, rows, make_tokenizer, tmp_path):
        tokenizer = make_tokenizer(*TOKENIZERS[name])
        trainer = DPOTrainer(
            tiny(LlamaForCausalLM, tokenizer),
            ref_model=tiny(LlamaForCausalLM, tokenizer),
            args=arguments(DPOConfig, tmp_path),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        for row, theirs in zip(rows, trainer.train_dataset, strict=True):
            for answer in ("chosen", "rejected"):
                prompt, completion = encode_pair(row["prompt"], row[answer], tokenizer)
                assert prompt + completion == theirs["prompt_ids"] + theirs[f"{answer}_ids"]
            if row is not PLAIN[1]:  # there TRL takes the shorter prompt of the two answers
                assert prompt == theirs["prompt_ids"]
                assert prompt == encode_prompt(row["prompt"], tokenizer)

    def test_reward(self, name, rows, make_tokenizer, tmp_path):
        tokenizer = make_tokenizer(*TOKENIZERS[name])
        trainer = RewardTrainer(
            tiny(LlamaForSequenceClassification, tokenizer),
            arguments(RewardConfig, tmp_path),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        for row, theirs in zip(rows, trainer.train_dataset, strict=True):
            for answer in ("chosen", "rejected"):
                prompt, completion = encode_pair(row["prompt"], row[answer], tokenizer)
                assert prompt + completion == theirs[f"{answer}_ids"]


def test_text_is_what_sft_trains_on(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(bos=True)
    texts = ["The sky is blue.", "It was sent.<|im_end|>"]
    trainer = SFTTrainer(
        tiny(LlamaForCausalLM, tokenizer),
        arguments(SFTConfig, tmp_path),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )
    for text, theirs in zip(texts, trainer.train_dataset, strict=True):
        assert encode_text(text, tokenizer) == theirs["input_ids"] == theirs["labels"]


def test_a_batch_equals_its_rows(tokenizer):
    for rows in (CONVERSATIONS, PLAIN):
        prompts, answers = [r["prompt"] for r in rows], [r["chosen"] for r in rows]
        one_by_one = [encode_pair(p, a, tokenizer) for p, a in zip(prompts, answers, strict=True)]
        assert encode_pairs(prompts, answers, tokenizer) == one_by_one


def test_text_after_a_conversation_is_the_assistants(tokenizer):
    row = CONVERSATIONS[0]
    as_text = encode_pair(row["prompt"], row["chosen"][0]["content"], tokenizer)
    assert as_text == encode_pair(row["prompt"], row["chosen"], tokenizer)


def test_tokens_that_merge_across_the_boundary_belong_to_the_completion(tokenizer):
    row = PLAIN[1]
    prompt, completion = encode_pair(row["prompt"], row["chosen"], tokenizer)
    assert len(prompt) < len(encode_prompt(row["prompt"], tokenizer))
    assert tokenizer.decode(prompt + completion) == "Open the settings<|im_end|>"


@pytest.mark.parametrize("template", ["chatml", "tight"])
def test_end_of_turn_is_the_templates_last_mark(make_tokenizer, template):
    tokenizer = make_tokenizer(template)
    assert tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)) == "<|im_end|>"


def test_end_of_turn_may_differ_from_eos(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|im_start|>"  # as where EOS ends a text and another token a turn
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn_id(tokenizer, conversational=False) == tokenizer.eos_token_id


def test_a_template_that_never_ends_a_turn_is_refused(make_tokenizer):
    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    with pytest.raises(ModelError, match=r"never learn to stop.*model\.chat_template=chatml"):
        check_tokenizer(tokenizer, conversational=True)


class TestCheckTokenizer:
    def test_a_good_one_passes(self, tokenizer):
        check_tokenizer(tokenizer, conversational=True)

    def test_conversations_need_a_template(self, make_tokenizer):
        tokenizer = make_tokenizer(template=None)
        check_tokenizer(tokenizer, conversational=False)
        with pytest.raises(ModelError, match=r"no chat template.*model\.chat_template=chatml"):
            check_tokenizer(tokenizer, conversational=True)

    def test_eos_must_exist(self, make_tokenizer):
        tokenizer = make_tokenizer()
        tokenizer.eos_token = None
        with pytest.raises(ModelError, match=r"no EOS token.*tokenizer_config\.json"):
            check_tokenizer(tokenizer)
        with pytest.raises(ModelError, match="no EOS token"):
            encode_pair("a", "b", tokenizer)

    def test_pad_is_not_eos(self, make_tokenizer):
        tokenizer = make_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        with pytest.raises(ModelError, match=r"pads with its EOS.*pad_token = '<\|pad\|>'"):
            check_tokenizer(tokenizer)

    def test_all_faults_are_told_at_once(self, make_tokenizer):
        tokenizer = make_tokenizer(template=None)
        tokenizer.eos_token = tokenizer.pad_token = None
        with pytest.raises(ModelError) as error:
            check_tokenizer(tokenizer, conversational=True)
        for fault in ("no EOS", "no PAD", "no chat template"):
            assert fault in str(error.value)


class TestCheckSample:
    def test_two_bos_are_refused_with_the_sample(self, make_tokenizer):
        tokenizer = make_tokenizer(bos=True)
        ids = encode_text("<|bos|>The sky", tokenizer)
        assert ids[:2] == [tokenizer.bos_token_id] * 2
        with pytest.raises(DataError, match=r"two BOS tokens.*<\|bos\|><\|bos\|>The sky"):
            check_sample(ids, ids, tokenizer, tokenizer.eos_token_id)

    def test_the_end_of_turn_must_be_supervised_last(self, tokenizer):
        end = end_of_turn_id(tokenizer)
        ids = encode_text("The sky", tokenizer)
        check_sample(ids, ids, tokenizer, end)
        newline = tokenizer("\n")["input_ids"]
        check_sample(ids + newline, ids + newline, tokenizer, end)
        with pytest.raises(DataError, match=r"not the end of turn '<\|im_end\|>'.*'The sky'"):
            check_sample(ids[:-1], ids[:-1], tokenizer, end)
        with pytest.raises(DataError, match="not the end of turn"):
            check_sample(ids, [], tokenizer, end)
