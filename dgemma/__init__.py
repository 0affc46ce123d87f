"""DiffusionGemma: a language model that writes by diffusion, on a laptop CPU or one big GPU.

Only the names in `__all__` are public. Each is loaded when it is first used, so `import dgemma`
takes no time and loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgemma.compose.calibration import Calibration as Calibration
    from dgemma.compose.fill import Hole as Hole
    from dgemma.compose.questions import Choice as Choice
    from dgemma.compose.questions import Predicate as Predicate
    from dgemma.compose.questions import Score as Score
    from dgemma.compose.run import PlanEvent as PlanEvent
    from dgemma.compose.run import PlanStream as PlanStream
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
    from dgemma.events import EventStream as EventStream
    from dgemma.llm import LLM as LLM
    from dgemma.llm import load as load
    from dgemma.llm import save as save
    from dgemma.params import SamplingParams as SamplingParams
    from dgemma.request_parts import PromptContent as PromptContent
    from dgemma.request_parts import ToolUse as ToolUse
    from dgemma.types import CanvasControl as CanvasControl
    from dgemma.types import CanvasEdit as CanvasEdit
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

_MODULES = {
    "compose.calibration": "Calibration",
    "compose.fill": "Hole",
    "compose.questions": "Choice Predicate Score",
    "compose.run": "PlanEvent PlanStream",
    "errors": "CheckpointError ConfigError ContextOverflow DGemmaError DeviceError EngineError "
    "InvalidRequest MissingExtra ModelNotFound Overloaded TemplateError TokenizerError",
    "events": "EventStream",
    "llm": "LLM load save",
    "params": "SamplingParams",
    "request_parts": "PromptContent ToolUse",
    "types": "CanvasControl CanvasEdit Constraint Event InvalidToolCall InvalidToolCallDelta "
    "Output Request TextDelta ThoughtDelta TokenScore ToolCall ToolCallDelta Usage",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__version__ = "0.1.0"

if not TYPE_CHECKING:
    # A type checker cannot evaluate this, and would take a misspelt name for one of `__getattr__`.
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'dgemma' has no attribute {name!r}")
        return globals().setdefault(name, getattr(import_module(f"dgemma.{_HOMES[name]}"), name))

    def __dir__() -> list[str]:
        return sorted([*__all__, "__version__"])
