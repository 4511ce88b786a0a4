"""`align generate` and `align chat`: a checkpoint answers. Heavy imports happen inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from align.quiet import quiet_libraries

# What both commands take, said once.
Model = Annotated[str, typer.Argument(help="Directory or hub id.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus; 1 is off.")]
Seed = Annotated[int | None, typer.Option(help="For answers that can be repeated.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
Tokenizer = Annotated[str | None, typer.Option(help="If not the model's own.")]
ChatTemplate = Annotated[str | None, typer.Option(help="Built-in name or .jinja file.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


def generate(
    model: Model,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; - reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--prompts", "-f", help="A data file.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSONL file.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    min_p: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    beams: Annotated[int, typer.Option("--beams", help="Beam search above 1.")] = 1,
    samples: Annotated[int, typer.Option("-n", "--samples", help="Answers per prompt.")] = 1,
    best_of: Annotated[int, typer.Option(help="Draw so many, keep the best by --reward.")] = 1,
    reward: Annotated[str | None, typer.Option(help="Reward model or module:function.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out winners below it.")] = None,
    keep: Annotated[float | None, typer.Option(help="Keep this best share of winners.")] = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(help="Answers decoded at once.")] = 16,
    system: System = None,
    tokenizer: Tokenizer = None,
    chat_template: ChatTemplate = None,
    dtype: DType = "auto",
    raw: Annotated[bool, typer.Option(help="Do not apply the chat template.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output.")] = False,
) -> None:
    """Write a model's answers to prompts."""
    quiet_libraries()
    from align.generate import Decoding, run_generate
    from align.prompts import read_prompts
    from align.stages.preflight import check_model
    from align.winners import keep_best, open_winners

    stdin = None if sys.stdin.isatty() else sys.stdin
    check_model("MODEL", model)
    given, columns = read_prompts([p for p in prompts or [] if p != "-"], file, stdin)
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        beams=beams,
        samples=best_of if reward else samples,
        seed=seed,
        batch_size=batch_size,
    )
    winners = open_winners(reward, best_of, samples, min_score, keep, output)
    run_generate(
        model,
        given,
        decoding,
        output=output,
        overwrite=overwrite,
        raw=raw,
        system=system,
        tokenizer=tokenizer,
        chat_template=chat_template,
        dtype=dtype,
        columns=columns,
        winners=winners,
    )
    if keep is not None and output is not None:
        keep_best(output, keep)


def chat(
    model: Model,
    versus: Annotated[str | None, typer.Option(help="A second model, side by side.")] = None,
    votes: Annotated[str | None, typer.Option(help="JSONL file or store URL for votes.")] = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    tokenizer: Tokenizer = None,
    chat_template: ChatTemplate = None,
    dtype: DType = "auto",
    seed: Seed = None,
) -> None:
    """Talk to a checkpoint in the terminal."""
    quiet_libraries()
    from align.chat import run_chat
    from align.generate import Decoding

    run_chat(
        model,
        Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed),
        versus=versus,
        system=system,
        votes=votes,
        tokenizer=tokenizer,
        chat_template=chat_template,
        dtype=dtype,
    )
