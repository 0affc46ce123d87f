"""Nano under other chat templates than its own."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import dgemma
from dgemma.llm import LLM
from tests.support.tokenizers import NANO, open_source

TEMPLATE = "chat_template.jinja"


@cache
def nano_under(source: str) -> LLM:
    """Nano with a chat template of this text in place of its own."""
    directory = Path(tempfile.mkdtemp(prefix="nano-"))
    atexit.register(shutil.rmtree, directory, True)
    shutil.copytree(NANO, directory, dirs_exist_ok=True)
    (directory / TEMPLATE).write_text(source, encoding="utf-8")
    return dgemma.load(directory, device="cpu", dtype="float32")


def open_nano() -> LLM:
    """Nano with a template that leaves the empty thought to the model."""
    return nano_under(open_source())


def unclosed(source: str) -> LLM:
    """Nano under a template, with a frontend that never closes the thought."""
    llm = nano_under(source + "{#- not closed -#}")
    llm.frontend.__dict__["_turn"] = None
    return llm
