"""The process that `reward.verify.math_answer` asks: a line [expected, found] in, 1 or 0 out.

It ends with its parent, whose end closes its input; the alarm ends one that computes at that time.
"""

import json
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        configs = [LatexExtractionConfig(), ExprExtractionConfig()]
        return parse(f"${text}$", configs, parsing_timeout=None)

    print("ready", flush=True)
    for line in sys.stdin:
        expected, found = json.loads(line)
        signal.alarm(int(float(sys.argv[1])) + 5)
        try:
            equal = verify(read(expected), read(found), timeout_seconds=None)
        except Exception:  # whatever a strange formula does to a parser, it is no right answer
            equal = False
        signal.alarm(0)
        print(int(equal), flush=True)


if __name__ == "__main__":
    main()
