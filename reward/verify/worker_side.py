"""The process that `reward.verify.worker` asks: a line with a question in, a line of JSON out.

It ends with its parent, whose end closes its input; the alarm ends one that computes at that time.
"""

import functools
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

FRAMES = 10_000  # a recursive schema takes some ten for each level of a text


def algebra() -> Callable[..., Any]:
    """Whether two LaTeX expressions, the expected one and the one found, are equal."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        configs = [LatexExtractionConfig(), ExprExtractionConfig()]
        return parse(f"${text}$", configs, parsing_timeout=None)

    def answer(expected: str, found: str) -> bool:
        try:
            return bool(verify(read(expected), read(found), timeout_seconds=None))
        except Exception:  # whatever a strange formula does to a parser, it is no right answer
            return False

    return answer


def schema() -> Callable[..., Any]:
    """Whether a value fits a schema; None if it nests too deeply, a text if the schema is at fault.

    The schema comes as JSON text, so that one that is asked for again is known again.
    """
    from jsonschema.protocols import Validator
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    sys.setrecursionlimit(FRAMES)

    @functools.lru_cache(64)
    def validator(text: str) -> Validator:
        schema = json.loads(text)
        # An empty registry: a $ref elsewhere is not fetched.
        return validator_for(schema)(schema, registry=Registry())

    def answer(text: str, value: Any) -> bool | str | None:
        try:
            return validator(text).is_valid(value)
        except RecursionError:
            return None
        except Unresolvable as error:
            return (
                f"the schema points elsewhere, which is not fetched: {error}. Fix: put it into "
                "the schema under $defs."
            )

    return answer


def main() -> None:
    """Answer until the input ends."""
    check, seconds = sys.argv[1], float(sys.argv[2])
    answer = {"algebra": algebra, "schema": schema}[check]()
    print('"ready"', flush=True)
    for line in sys.stdin:
        signal.alarm(int(seconds) + 5)
        found = json.dumps(answer(*json.loads(line)))
        signal.alarm(0)
        print(found, flush=True)


if __name__ == "__main__":
    main()
