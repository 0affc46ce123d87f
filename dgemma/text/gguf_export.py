"""The text side of a GGUF file as the files that a checkpoint's directory has of it."""

from __future__ import annotations

import json
from pathlib import Path

from dgemma.text.gguf import has_vocabulary, read_template, read_vocabulary


def text_files(path: Path) -> dict[str, str]:
    """Names and contents: tokenizer.json, tokenizer_config.json, chat_template.jinja; what is
    not in the file is left out.

    Raises:
        TokenizerError, TemplateError: it is in the file and cannot be used.
    """
    if not has_vocabulary(path):
        return {}
    backend, names = read_vocabulary(path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    template = read_template(path)
    return {
        "tokenizer.json": backend.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        **({} if template is None else {"chat_template.jinja": template}),
    }
