"""Rewards for form: valid JSON, JSON that fits a schema, a text that matches a pattern.

A completion cannot make them hang: patterns run under a time limit (the `regex` package), schemas
are applied by a process that is ended when it takes too long, and fetch nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import regex

from feedback.schema import Text
from reward.errors import MissingDependencyError, RewardError
from reward.functions import final
from reward.verify.worker import Worker

INSTALL = "pip install 'align-rlhf[rewards]'"
FENCED = re.compile(r"\A\s*```(?:json)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
DEEPEST = 200  # levels; beyond that a text is no answer but an attempt on the parser


def read_json(text: str) -> Any:
    """The value of a text that is JSON and nothing else, a fence around it aside.

    Raises:
        ValueError: it is not (NaN and Infinity are no JSON either).
    """
    fenced = FENCED.match(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _depth(value) > DEEPEST:
        raise ValueError("nested too deeply")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _depth(value: Any) -> int:
    """Levels of lists and objects."""
    level, deepest = _items(value), 0
    while level:
        deepest += 1
        level = [item for each in level for item in _items(each)]
    return deepest


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def json_format(prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
    """1.0 where a completion is JSON and nothing else, else 0.0."""
    rewards = []
    for completion in completions:
        try:
            read_json(final(completion))
        except ValueError:
            rewards.append(0.0)
        else:
            rewards.append(1.0)
    return rewards


class JSONSchemaReward:
    """1.0 where a completion is JSON that fits the schema, `invalid` where only the form fits."""

    def __init__(
        self,
        schema: Mapping[str, Any] | None = None,
        *,
        column: str | None = None,
        invalid: float = 0.0,
        seconds: float = 5.0,
        name: str = "json_schema",
    ):
        """Check the schema.

        Args:
            schema: one for all rows.
            column: or the column with each row's own, as an object or as JSON text.
            invalid: the reward of valid JSON that does not fit.
            seconds: for one completion; one that takes longer gets 0.0.
            name: in metrics and errors.

        Raises:
            MissingDependencyError: jsonschema is not installed.
            RewardError: neither or both of schema and column, or a schema that is none.
        """
        try:
            import jsonschema  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"reward {name!r}: jsonschema is not installed. {INSTALL}"
            ) from error
        if (schema is None) == (column is None):
            raise RewardError(f"reward {name!r}: give either a schema or a column with schemas.")
        self.column, self.invalid, self.__name__ = column, invalid, name
        self.schema = None if schema is None else self._checked(schema)
        self._worker = Worker("schema", seconds)

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        """One float per completion.

        Raises:
            RewardError: a schema is none, or points elsewhere.
        """
        if self.column is not None and self.column not in columns:
            raise RewardError(f"reward {self.__name__!r} needs the column {self.column!r}.")
        rewards = []
        for row, completion in enumerate(completions):
            schema = self.schema or self._checked(columns[str(self.column)][row])
            try:
                value = read_json(final(completion))
            except ValueError:
                rewards.append(0.0)
                continue
            fits = self._worker.ask(schema, value)
            if isinstance(fits, str):
                raise RewardError(f"reward {self.__name__!r}: {fits}")
            rewards.append({True: 1.0, False: self.invalid, None: 0.0}[fits])
        return rewards

    def _checked(self, schema: Any) -> str:
        """A schema as JSON text."""
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            validator_for(schema).check_schema(schema)
            return json.dumps(schema)
        except (SchemaError, ValueError, TypeError) as error:
            raise RewardError(f"reward {self.__name__!r}: no JSON schema: {error}") from error


class RegexReward:
    """1.0 where a completion matches a pattern, else 0.0."""

    def __init__(
        self,
        pattern: str,
        *,
        whole: bool = True,
        seconds: float = 1.0,
        name: str = "regex",
    ):
        """Compile the pattern.

        Args:
            pattern: in the syntax of the `regex` package, a superset of `re`; a dot matches
                newlines too.
            whole: the whole completion has to match, blanks around it aside, not some part.
            seconds: for one completion; a pattern that takes longer does not match.
            name: in metrics and errors.

        Raises:
            RewardError: the pattern is none.
        """
        try:
            self.pattern = regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise RewardError(f"reward {name!r}: {pattern!r} is no pattern: {error}.") from error
        self.whole, self.seconds, self.__name__ = whole, seconds, name

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        """One float per completion."""
        match = self.pattern.fullmatch if self.whole else self.pattern.search
        rewards = []
        for completion in completions:
            text = final(completion).strip() if self.whole else final(completion)
            try:
                rewards.append(float(match(text, timeout=self.seconds) is not None))
            except TimeoutError:
                rewards.append(0.0)
        return rewards
