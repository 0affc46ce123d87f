"""DiffusionGemma: a language model that writes by diffusion, on a laptop CPU or one big GPU.

Only what `__all__` lists is public. Names are loaded when they are first used, so `import dgemma`
does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "dgemma.compose.calibration": ("Calibration",),
    "dgemma.compose.fill": ("Hole",),
    "dgemma.compose.questions": ("Choice", "Predicate", "Score"),
    "dgemma.errors": (
        "CheckpointError", "ConfigError", "ContextOverflow", "DGemmaError", "DeviceError",
        "EngineError", "InvalidRequest", "MissingExtra", "ModelNotFound", "Overloaded",
        "TemplateError", "TokenizerError",
    ),
    "dgemma.llm": ("LLM", "load", "save"),
    "dgemma.params": ("SamplingParams",),
    "dgemma.types": (
        "CanvasControl", "Constraint", "Event", "Output", "Request", "TokenScore", "ToolCall",
        "Usage",
    ),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

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
    "TokenScore",
    "TokenizerError",
    "ToolCall",
    "Usage",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dgemma' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
