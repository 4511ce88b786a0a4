"""What can be refused before weights are read: paths, adapters, guards, missing packages.

A misspelt path must not cost the hours it takes to get to it. Everything here looks at files'
names and headers only.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from align.config.stages import TrainingStage
from align.engine.tokenizer import load_tokenizer, why_not
from align.errors import (
    AlignError,
    ConfigError,
    MissingDependencyError,
    ModelError,
    Problem,
)
from align.stages.guard_checks import check_guards
from align.stages.model_names import check_frozen
from align.stages.package_checks import check_packages
from align.stages.peft_checks import check_peft

TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")  # files of which one is there


def check_start(config: TrainingStage) -> None:
    """Refuse what every training stage can refuse at once.

    Raises:
        ConfigError: adapters, frozen names or guards that cannot work, with every problem found.
        MissingDependencyError: a package that settings need is not installed.
        ModelError: the model's directory is missing or damaged.
    """
    gather(
        lambda: check_peft(config.peft, config.stage, config.model.path),
        lambda: check_frozen(config.model.freeze, config.model.path, config.stage),
        lambda: check_guards(config),
    )
    check_packages(config.trainer, config.tracking.report_to)
    check_model("model.path", config.model.path, policy=config.stage != "reward")


def gather(*checks: Callable[[], Any]) -> list[Any]:
    """Run every check and report the problems of all together; returns what they returned.

    Raises:
        ConfigError: with every problem found.
    """
    results: list[Any] = []
    problems: list[Problem] = []
    for check in checks:
        try:
            results.append(check())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return results


def check_model(where: str, path: str, *, policy: bool = True) -> None:
    """Refuse a model directory that is missing, empty, cut short or of another kind.

    Args:
        where: the key that names it.
        path: a directory; what looks like a hub id passes.
        policy: it has to write text, so a reward model is refused.

    Raises:
        ModelError: with what is there and what was expected.
    """
    fault = model_fault(path)
    if fault is None and policy and is_classifier(path):
        fault = (
            "is a reward model (a sequence classifier): its language-model head is gone.",
            "name the policy it was trained from.",
        )
    if fault:
        raise ModelError(f"{where}: {path or repr(path)} {fault[0]} Fix: {fault[1]}")


def model_fault(
    path: str, *, tokenizer: bool = True, above: tuple[Path, ...] = ()
) -> tuple[str, str] | None:
    """What is wrong with a model's directory and how to mend it; None: a good one, or a hub id.

    Args:
        path: a model's, or an adapter's, whose base is looked at too.
        tokenizer: one has to be there.
        above: adapters that stand on it.
    """
    place = Path(path)
    if not path or not place.exists():
        return _missing(path) if not path or is_local(path) else None
    if place.is_file():
        return "is a file.", "name the model's directory."
    if (place / "adapter_config.json").is_file():
        wanted = "adapter_model"
    elif (place / "config.json").is_file():
        wanted = "model"
    elif (place / "model" / "config.json").is_file():
        return "is a run, not a model.", f"name {place / 'model'}."
    else:
        held = ", ".join(sorted(item.name for item in place.iterdir())[:6]) or "nothing"
        return (
            f"holds no model: there is no config.json (it holds {held}).",
            "name a directory that save_pretrained wrote, such as the model/ folder of a run.",
        )
    fault = _config_fault(place) or _weights_fault(place, wanted)
    if wanted == "adapter_model":
        return fault or _base_fault(place, tokenizer, (*above, place.resolve()))
    return fault or (_tokenizer_fault(place) if tokenizer else None)


def hub_fault(path: str) -> tuple[str, str] | None:
    """What is wrong with a name that is no folder here, and how to mend it: asks the hub.

    For a model that is read late; one that is read at once says it itself.
    """
    if Path(path).exists():
        return None
    try:
        load_tokenizer(path)
    except ModelError as error:
        cause = error.__cause__
        why = why_not(path, cause) if isinstance(cause, Exception) else str(error)
        return f"is no model: {why}.", "check the path."
    return None


def _missing(path: str) -> tuple[str, str]:
    if not path:
        return "is empty.", "name a model's directory or a hub id."
    folder, wanted = Path(path).parent, Path(path).name
    while not folder.is_dir() and folder != folder.parent:
        folder, wanted = folder.parent, folder.name
    names = [item.name for item in folder.iterdir() if item.is_dir()]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    return "does not exist.", f"did you mean {folder / near[0]}?" if near else "check the path."


def _base_fault(adapter: Path, tokenizer: bool, above: tuple[Path, ...]) -> tuple[str, str] | None:
    """What is wrong with the model that an adapter stands on, or with that one's base."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path") or ""
    mend = "change base_model_name_or_path in its adapter_config.json."
    if Path(base).resolve() in above and base:
        return f"is an adapter on {base}, which stands on it.", mend
    fault = model_fault(base, tokenizer=tokenizer and not _tokenizers(adapter), above=above)
    if fault is None:
        return None
    what = f"is an adapter on {base or 'a model without a name'}, which {fault[0][:-1]}"
    if not Path(base).is_absolute():
        what += f" (from {Path.cwd()})"
    return f"{what}.", f"{fault[1][:-1]}; or {mend}"


def _config_fault(place: Path) -> tuple[str, str] | None:
    for name in ("config.json", "adapter_config.json"):
        file = place / name
        if not file.is_file():
            continue
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return f"has a damaged {name} ({error}).", "fetch or save the model again."
    return None


def _weights_fault(place: Path, stem: str) -> tuple[str, str] | None:
    again = "fetch or save the model again; an interrupted copy leaves such files."
    files = sorted(place.glob(f"{stem}*.safetensors"))
    if not files and not any(place.glob("*.bin")):
        return "holds no weights: *.safetensors is expected.", again
    index = place / f"{stem}.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        absent = sorted(named - {file.name for file in files})
        if absent:
            return f"lacks {', '.join(absent[:3])}, which its index lists.", again
    for file in files:
        try:
            with safe_open(file, framework="pt"):  # reads the header, compares the file's size
                pass
        except SafetensorError as error:
            return (
                f"has damaged weights: {file.name} is cut short or no safetensors ({error}).",
                again,
            )
    return None


def _tokenizer_fault(place: Path) -> tuple[str, str] | None:
    if _tokenizers(place):
        return None
    fix = f"save it beside the weights: tokenizer.save_pretrained({str(place)!r})."
    return "holds no tokenizer: tokenizer.json is expected.", fix


def _tokenizers(place: Path) -> list[Path]:
    return [file for name in TOKENIZERS for file in place.glob(name)]


def is_local(path: str) -> bool:
    """Whether a model's name can only be, or most likely is, a path rather than a hub id."""
    place = Path(path)
    return (
        place.is_absolute()
        or path.startswith((".", "~"))
        or path.count("/") > 1
        or ("/" in path and place.parent.is_dir())
    )


def is_classifier(path: str) -> bool:
    """Whether a local model's configuration says that it is a sequence classifier."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return False
    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    return any("SequenceClassification" in name for name in names)


@contextmanager
def loading(path: str) -> Iterator[None]:
    """Turn what libraries raise while weights load into an error that names the model.

    Raises:
        ModelError: weights of another shape than the configuration says, or damaged ones.
        MissingDependencyError: a kernel or quantiser that is not installed.
    """
    try:
        yield
    except AlignError:
        raise
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingDependencyError(
            f"loading {path} needs a package that is not installed: {reason} Fix: install it, or "
            "change model.attn_implementation or model.quantization."
        ) from error
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "mismatched_sizes" not in str(error):
            raise
        reason = "its weights do not fit its config.json"
        if isinstance(error, SafetensorError):
            reason = f"its weights are damaged: {error}"
        raise ModelError(
            f"cannot load a model from {path}: {reason}. Fix: fetch or save the model again."
        ) from error


def build_trainer(trainer_class: Callable[..., Any], **kwargs: Any) -> Any:
    """Construct a trainer; what TRL, transformers or PEFT refuse by value is the configuration's.

    Raises:
        ConfigError: with the library's own reason.
        MissingDependencyError: an option that needs a package which is not installed.
    """
    name = getattr(trainer_class, "__name__", "the trainer")
    try:
        return trainer_class(**kwargs)
    except AlignError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs a package: {error}") from error
    except (ValueError, NotImplementedError) as error:
        raise ConfigError([Problem("trainer, peft", f"{name} refuses them: {error}")]) from error
