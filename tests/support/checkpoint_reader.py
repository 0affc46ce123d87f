"""A process that reads checkpoints one after the other, under limits, and says what came of each.

    python -m tests.support.checkpoint_reader MEBIBYTES

Each line of standard input is a directory; the answer is a JSON line: "loaded", "refused" with the
message, or "broke" with a traceback. Knows nothing about what is wrong with them.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import traceback
from pathlib import Path

import torch

import dgemma
from dgemma.errors import DGemmaError
from dgemma.text import template_costs

PROMPT = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab <bos> \u017e\u4e16"


def read(directory: str) -> None:
    """All that comes before the first step of a model."""
    with dgemma.load(directory, device="cpu", cache_bytes=1 << 22) as llm:
        if llm.template is not None:
            llm.chat_ids([{"role": "user", "content": PROMPT}])
        if llm.tokenizer is not None:
            llm.tokenizer.encode(PROMPT)


def outcome(directory: str) -> dict[str, str]:
    """What came of a directory."""
    try:
        read(directory)
    except DGemmaError as error:
        return {"outcome": "refused", "text": f"{type(error).__name__}: {error}"}
    except BaseException:
        return {"outcome": "broke", "text": traceback.format_exc()[-3000:]}
    return {"outcome": "loaded", "text": ""}


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    logging.disable()
    template_costs.WORK = 1 << 24  # the same errors, sooner
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = held + (int(sys.argv[1]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    print(json.dumps({"outcome": "ready"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(outcome(line.rstrip("\n"))), flush=True)


if __name__ == "__main__":
    main()
