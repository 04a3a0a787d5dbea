"""Reads the test set beside this file; needs nothing but Python.

    python tests/verifiers/read.py    # how many answers of each kind there are

Each line of `countdown.jsonl` is an answer to a problem: `numbers` and a `target`; the answer as `steps`, a
list of texts such as "9 / 3 = 3", and as an `expression` (null where steps say what no expression can);
whether it is `right`, and `why`: what it does.
"""

import json
from collections import Counter
from pathlib import Path


def answers() -> list[dict]:
    """Returns all answers, as dictionaries, in the order of the file."""
    text = Path(__file__).with_name("countdown.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    kinds = Counter((answer["right"], answer["why"]) for answer in answers())
    for (right, why), count in sorted(kinds.items()):
        print(f"{count:4}  {'right' if right else 'wrong'}  {why}")
