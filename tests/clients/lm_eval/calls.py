"""EleutherAI's evaluation harness against a running server, by its adapter for OpenAI's chat API.

    python calls.py URL KEY     where questions.jsonl is: {"question": ..., "answer": ...} a line

The whole tree of `lm_eval[api]` is installed; it needs no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

TASK = Path(__file__).parent / "nano_json.yaml"


def main() -> None:
    """Run the harness's own command, then read what it wrote."""
    url, key = sys.argv[1:]
    questions = [json.loads(line) for line in Path("questions.jsonl").read_text().splitlines()]
    model = f"model=nano,base_url={url}/v1/chat/completions,num_concurrent=4,max_retries=1"
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions",
        "--model_args", model, "--tasks", str(TASK), "--apply_chat_template",
        "--output_path", "out", "--log_samples", "--seed", "3",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": key}
    subprocess.run(command, env={**os.environ, **offline}, check=True)
    [results] = Path("out").rglob("results_*.json")
    [samples] = Path("out").rglob("samples_*.jsonl")
    told = [json.loads(line) for line in samples.read_text().splitlines()]
    assert sorted(one["doc"]["question"] for one in told) == sorted(
        one["question"] for one in questions
    )
    right = sum(one["resps"][0][0] == one["doc"]["answer"] for one in told)
    score = json.loads(results.read_text())["results"]["nano_json"]["exact_match,none"]
    assert score == right / len(questions) and right > 0, (score, right)
    print(f"lm_eval {version('lm_eval')}: generate_until, {right} of {len(questions)} right")


if __name__ == "__main__":
    main()
