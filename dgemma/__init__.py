"""DiffusionGemma: a language model that writes by diffusion, on a laptop CPU or one big GPU.

Only the names in `__all__` are public. Each is loaded when it is first used, so that
`import dgemma` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgemma.compose.calibration import Calibration
    from dgemma.compose.fill import Hole
    from dgemma.compose.questions import Choice, Predicate, Score
    from dgemma.errors import (
        CheckpointError,
        ConfigError,
        ContextOverflow,
        DeviceError,
        DGemmaError,
        EngineError,
        InvalidRequest,
        MissingExtra,
        ModelNotFound,
        Overloaded,
        TemplateError,
        TokenizerError,
    )
    from dgemma.frontend import TextStream
    from dgemma.llm import LLM, load, save
    from dgemma.params import SamplingParams
    from dgemma.types import (
        CanvasControl,
        Constraint,
        Event,
        Output,
        Request,
        TokenScore,
        ToolCall,
        Usage,
    )

_HOMES = ("errors", "params", "types", "frontend", "compose.questions", "compose.fill",
          "compose.calibration", "llm")  # fmt: skip
"""Modules that define the public names, the cheapest to import first."""

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Calibration",
    "CanvasControl",
    "CheckpointError",
    "Choice",
    "ConfigError",
    "Constraint",
    "ContextOverflow",
    "DGemmaError",
    "DeviceError",
    "EngineError",
    "Event",
    "Hole",
    "InvalidRequest",
    "MissingExtra",
    "ModelNotFound",
    "Output",
    "Overloaded",
    "Predicate",
    "Request",
    "SamplingParams",
    "Score",
    "TemplateError",
    "TextStream",
    "TokenScore",
    "TokenizerError",
    "ToolCall",
    "Usage",
    "load",
    "save",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of `__getattr__`

    def __getattr__(name: str) -> object:
        if name in __all__:
            for home in _HOMES:
                module = import_module(f"dgemma.{home}")
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module 'dgemma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
