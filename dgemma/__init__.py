"""DiffusionGemma: a language model that writes by diffusion, on a laptop CPU or one big GPU.

Only the names in `__all__` are public: the classes imported here, and those in `_LATER`, which are
loaded when they are first used, so that `import dgemma` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from dgemma.compose.calibration import Calibration as Calibration
from dgemma.compose.questions import Choice as Choice
from dgemma.compose.questions import Predicate as Predicate
from dgemma.compose.questions import Score as Score
from dgemma.errors import CheckpointError as CheckpointError
from dgemma.errors import ConfigError as ConfigError
from dgemma.errors import ContextOverflow as ContextOverflow
from dgemma.errors import DeviceError as DeviceError
from dgemma.errors import DGemmaError as DGemmaError
from dgemma.errors import EngineError as EngineError
from dgemma.errors import InvalidRequest as InvalidRequest
from dgemma.errors import MissingExtra as MissingExtra
from dgemma.errors import ModelNotFound as ModelNotFound
from dgemma.errors import Overloaded as Overloaded
from dgemma.errors import TemplateError as TemplateError
from dgemma.errors import TokenizerError as TokenizerError
from dgemma.params import SamplingParams as SamplingParams
from dgemma.request_parts import PromptContent as PromptContent
from dgemma.request_parts import ToolUse as ToolUse
from dgemma.types import CanvasControl as CanvasControl
from dgemma.types import Constraint as Constraint
from dgemma.types import Event as Event
from dgemma.types import InvalidToolCall as InvalidToolCall
from dgemma.types import InvalidToolCallDelta as InvalidToolCallDelta
from dgemma.types import Output as Output
from dgemma.types import Request as Request
from dgemma.types import TextDelta as TextDelta
from dgemma.types import ThoughtDelta as ThoughtDelta
from dgemma.types import TokenScore as TokenScore
from dgemma.types import ToolCall as ToolCall
from dgemma.types import ToolCallDelta as ToolCallDelta
from dgemma.types import Usage as Usage

if TYPE_CHECKING:
    from dgemma.compose.fill import Hole as Hole
    from dgemma.compose.run import PlanEvent as PlanEvent
    from dgemma.compose.run import PlanStream as PlanStream
    from dgemma.events import EventStream as EventStream
    from dgemma.llm import LLM as LLM
    from dgemma.llm import load as load
    from dgemma.llm import save as save

_LATER = {
    "Hole": "compose.fill",
    "PlanEvent": "compose.run",
    "PlanStream": "compose.run",
    "EventStream": "events",
    "LLM": "llm",
    "load": "llm",
    "save": "llm",
}

__version__ = "0.1.0"

if not TYPE_CHECKING:
    # A type checker cannot evaluate this, and would take a misspelt name for one of `__getattr__`.
    __all__ = sorted({*_LATER, *(name for name, one in globals().items() if isinstance(one, type))})

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module 'dgemma' has no attribute {name!r}")
        return getattr(import_module(f"dgemma.{_LATER[name]}"), name)

    def __dir__() -> list[str]:
        return sorted([*__all__, "__version__"])
