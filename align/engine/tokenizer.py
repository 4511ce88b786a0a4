"""Tokenizers that can be trained with: PAD exists and is not EOS, and a chat template where needed.

Leaves out the checks on samples: `align.data.tokens`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import cast

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align.errors import ModelError

PAD_TOKEN = "<|pad|>"
TEMPLATES = files("align.engine") / "templates"


def load_tokenizer(
    path: str | Path,
    *,
    chat_template: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """A tokenizer with an EOS token and a PAD token that is not it.

    A tokenizer without PAD, or whose PAD is its EOS, gets a `<|pad|>` token (an existing one of
    that kind is preferred): masking by `id == pad` would otherwise hide every end of turn, and the
    model would never learn to stop.

    Args:
        path: directory or hub id.
        chat_template: name of a built-in template, or a .jinja file; replaces the tokenizer's own.
        revision: of a hub tokenizer.
        trust_remote_code: run the tokenizer's own code.

    Raises:
        ModelError: there is no tokenizer, it has no EOS token, or the template does not exist.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load a tokenizer from {str(path)!r}: {why_not(path, error)}. Fix: check the "
            "path, or set model.tokenizer to a directory with tokenizer.json."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {path} has no EOS token, so no answer could ever end. Fix: set "
            "`eos_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        spare = [PAD_TOKEN, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>"]
        usable = [t for t in spare if t in vocabulary and vocabulary[t] != tokenizer.eos_token_id]
        tokenizer.add_special_tokens({"pad_token": usable[0] if usable else PAD_TOKEN})
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    return tokenizer


def why_not(path: str | Path, error: Exception) -> str:
    """Why a name could not be loaded; what is no folder was looked for on the hub, too."""
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if Path(path).exists():
        return reason
    return (
        f"there is no folder {path} in {Path.cwd()}, and no such model could be fetched from the "
        f"hub ({reason.rstrip('.')})"
    )


def read_template(name: str) -> str:
    """The text of a built-in chat template, or of a .jinja file.

    Raises:
        ModelError: there is none.
    """
    if name.endswith((".jinja", ".j2")):
        file = Path(name)
        if not file.is_file():
            raise ModelError(f"model.chat_template: no such file {name}.")
        return file.read_text(encoding="utf-8")
    builtin = TEMPLATES / f"{name}.jinja"
    if not builtin.is_file():
        known = sorted(Path(str(item)).stem for item in TEMPLATES.iterdir())
        raise ModelError(
            f"model.chat_template: no built-in template {name!r}. Fix: use one of "
            f"{', '.join(known)}, or a path that ends in .jinja."
        )
    return builtin.read_text(encoding="utf-8")


def match_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Grow the embeddings when the tokenizer has more tokens than the model; says whether it did.

    A new row starts at the mean of the others, so that a fresh PAD token is never likely.
    """
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    grown = len(tokenizer) > embeddings.num_embeddings
    if grown:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id
    return grown
