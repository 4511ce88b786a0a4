"""A randomly initialised model from a config alone: `align init`.

For machines without a hub, for tests, and for measuring a recipe at a small size first. Any causal
architecture that transformers knows, with an existing tokenizer or a byte-level BPE trained on the
user's own data. Leaves out the pretraining: `align sft` on plain text does that.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from align.data.read import missing, read_file
from align.data.tokens import end_of_turn_id
from align.engine.tokenizer import load_tokenizer, read_template
from align.errors import CheckpointError, ConfigError, DataError, ModelError, Problem

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
ROLES = "system\nuser\nassistant\n"  # what the template writes must be cheap to encode
SMALLEST = 256 + 3  # every byte and the special tokens


def create_model(
    config: str | Path | dict[str, Any],
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    tokenizer_data: Sequence[str | Path] | None = None,
    vocab_size: int = 4096,
    chat_template: str | None = None,
    seed: int = 42,
) -> Path:
    """Make a model with random weights and save it with its tokenizer.

    Args:
        config: a JSON file (or its content) as transformers' config.json: `model_type` and sizes.
            The vocabulary and the special tokens come from the tokenizer.
        output: a new or empty folder.
        tokenizer: the folder (or hub id) of an existing tokenizer.
        tokenizer_data: or the data files to train one on, every string of every row.
        vocab_size: of a tokenizer trained here, at most; at least 259.
        chat_template: a built-in name or a .jinja file; default: the tokenizer's own, or chatml.
        seed: of the weights.

    Returns:
        The folder.

    Raises:
        ConfigError: the config is no JSON object, has an unknown `model_type` or key, or not
            exactly one of `tokenizer` and `tokenizer_data` was given.
        DataError: a data file is missing, damaged or without text.
        ModelError: transformers refuses the config, or the tokenizer cannot be used.
        CheckpointError: the folder holds something already or cannot be written.
    """
    place = Path(output)
    settings = read_settings(config)
    _check_folder(place)
    if (tokenizer is None) == (not tokenizer_data):
        raise ConfigError("give either an existing tokenizer or data to train one on, not both.")
    if tokenizer is not None:
        made = load_tokenizer(tokenizer)
        if chat_template is not None or made.chat_template is None:
            made.chat_template = read_template(chat_template or "chatml")
    else:
        template = read_template(chat_template or "chatml")
        made = train_tokenizer(corpus(tokenizer_data or []), vocab_size)
        made.chat_template = template
    model = build_model(settings, made, seed)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context:
        made.model_max_length = context
    return _save(model, made, place)


def build_model(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """A causal language model in float32 whose vocabulary and special tokens are the tokenizer's.

    Raises:
        ModelError: the architecture has no causal language model, or refuses the sizes.
    """
    kind = settings["model_type"]
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(**(settings | tokens))
        text = config.get_text_config()
        text.vocab_size = len(tokenizer)
        for name, value in tokens.items():
            setattr(text, name, value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # huggingface_hub's checks name the validator first and the reason last
        reason = (lines or [type(error).__name__])[-1 if len(lines) == 2 else 0][:300]
        raise ModelError(
            f"transformers cannot build a causal language model of type {kind!r} from this "
            f"config: {reason}. Fix: mend the sizes (heads must divide the hidden size), or "
            "choose an architecture such as llama, qwen3 or gpt2."
        ) from error
    ends = {tokenizer.eos_token_id, end_of_turn_id(tokenizer)}
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be encoded, and digits stay single tokens.

    Raises:
        ConfigError: `vocab_size` leaves no room for the bytes.
        DataError: there is no text.
    """
    if vocab_size < SMALLEST:
        raise ConfigError(
            f"vocab_size={vocab_size} is too small: 256 bytes and 3 special tokens need {SMALLEST}."
        )
    counts = {"characters": 0}

    def counted() -> Iterator[str]:
        yield ROLES * 2
        for text in texts:
            counts["characters"] += len(text.strip())
            yield text

    backend = Tokenizer(models.BPE())
    # Single digits: a small model learns arithmetic on numbers that are always cut alike.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(counted(), trainer)
    if not counts["characters"]:
        raise DataError("the tokenizer's data hold no text. Fix: name files with text in them.")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
    )


def corpus(paths: Sequence[str | Path]) -> Iterator[str]:
    """Every string of every row of data files (messages within rows too), or a .txt file's lines.

    Raises:
        DataError: a file is missing or damaged, or a row is not readable.
    """
    for path in map(Path, paths):
        if path.suffix.lower() == ".txt":
            if not path.is_file():
                raise DataError(missing(path))
            with path.open(encoding="utf-8", errors="replace") as stream:
                yield from stream
            continue
        for record in read_file(path):
            if record.values is None:
                raise DataError(f"{record.where}: {record.problem}. Fix: mend or remove the row.")
            yield from _strings(record.values)


def read_settings(config: str | Path | dict[str, Any]) -> dict[str, Any]:
    """The config's JSON with its `model_type` and keys checked.

    transformers keeps unknown keys in silence, so a misspelt size would be a default size.

    Raises:
        ConfigError: all problems at once.
    """
    where = "config" if isinstance(config, dict) else str(config)
    settings = config if isinstance(config, dict) else _read_json(Path(config))
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=1)
        fix = f"did you mean {near[0]!r}?" if near else "llama, qwen3 and gpt2 are safe choices."
        found = "is missing" if kind is None else f"{kind!r} is unknown to transformers"
        raise ConfigError([Problem(f"{where}: model_type", found + ".", fix)])
    known = _known_keys(CONFIG_MAPPING[kind])
    problems = []
    for key in sorted(set(settings) - known):
        near = difflib.get_close_matches(key, sorted(known), n=1)
        fix = f"did you mean {near[0]!r}?" if near else "remove it."
        problems.append(Problem(f"{where}: {key}", f"is no setting of {kind}.", fix))
    if problems:
        raise ConfigError(problems)
    return settings


def _known_keys(kind: type[PretrainedConfig]) -> set[str]:
    names = set(kind().to_dict()) | set(kind.attribute_map)
    return names | {"architectures", "transformers_version", "torch_dtype", "dtype"}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError([Problem("config", missing(path))])
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([Problem(str(path), f"is no valid JSON ({error}).")]) from None
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise ConfigError([Problem(str(path), f"holds a {kind}; an object is expected.")])
    return settings


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _check_folder(place: Path) -> None:
    if place.is_dir() and any(place.iterdir()):
        names = ", ".join(sorted(item.name for item in place.iterdir())[:4])
        raise CheckpointError(
            f"{place} already holds {names}. Fix: choose a new folder, or empty this one."
        )
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"{place} is a file; a folder is expected. Fix: choose another name.")
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {place}: {error.strerror}. Fix: choose a folder you may write to."
        ) from error


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: Path) -> Path:
    """Save beside the folder and move: a folder that exists is a whole model."""
    partial = place.with_name(f".{place.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(place)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"could not save the model to {place}: {error.strerror or error}. "
            "Fix: free some space, or choose another folder."
        ) from error
    return place
