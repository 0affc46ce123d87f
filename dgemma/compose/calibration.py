"""What is fitted for one checkpoint: temperatures of decisions, and limits of canvases.

A model that is right 65 times in 100 should say so: one temperature for each kind of question is
fitted on labelled examples. The limits are fitted by `dgemma calibrate`. All of it is kept in a
small JSON file. Knows numbers and files; knows nothing about questions or canvases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dgemma.errors import ConfigError, InvalidRequest, nearest, short
from dgemma.files.read import MIB, exists, read_json, reason
from dgemma.files.write import replace_file

FORMAT = "dgemma-calibration-1"
FILE = "calibration.json"
"""Its name beside a checkpoint, where it is read on load."""
LEAST, MOST = 0.05, 20.0
MOST_STEPS, LEAST_LOGPROB = 10_000, -1000
LIMITS = ("restart_after", "least_logprob")
PRIOR = 0.5
"""How strongly a temperature is held at 1, in nats per squared logarithm: less than one example,
but enough that a few examples which are all right do not make every answer certain."""
_COARSE = 30
_TINY = 1e-12


def softmax(logs: Sequence[float]) -> tuple[float, ...]:
    """Their exponentials, scaled to the sum 1."""
    top = max(logs)
    powers = [math.exp(value - top) for value in logs]
    whole = sum(powers)
    return tuple(power / whole for power in powers)


def tempered(probabilities: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Probabilities to the power 1/temperature, summing to 1 again; 1 leaves them as they are."""
    return softmax([math.log(max(p, _TINY)) / temperature for p in probabilities])


def fit_temperature(probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature under which the right answers are likeliest, 0.05 to 20.

    Args:
        probabilities: for each example those of its choices, uncalibrated.
        right: for each example the index of the right choice.

    Raises:
        InvalidRequest: no examples, not one answer for each, an index that is not a choice, or
            a probability that is not a number from 0.
    """
    if not probabilities or len(probabilities) != len(right):
        raise InvalidRequest(
            f"{len(probabilities)} examples with {len(right)} right answers cannot be fitted; give "
            "one right answer for each of at least one example"
        )
    for number, (row, index) in enumerate(zip(probabilities, right, strict=True)):
        if not 0 <= index < len(row):
            raise InvalidRequest(f"example {number}: choice {index} of {len(row)} does not exist")
        if not all(0 <= p < math.inf for p in row):
            raise InvalidRequest(
                f"example {number} has probabilities {list(row)}; give numbers from 0 to 1"
            )

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return PRIOR * log_temperature**2 - sum(
            math.log(max(tempered(row, temperature)[index], _TINY))
            for row, index in zip(probabilities, right, strict=True)
        )

    low, high = math.log(LEAST), math.log(MOST)
    while high - low > 1e-4:  # a grid over the neighbours of the best point of the one before
        step = (high - low) / _COARSE
        best = min((low + number * step for number in range(_COARSE + 1)), key=loss)
        low, high = best - step, best + step
    return min(max(math.exp(best), LEAST), MOST)


def expected_calibration_error(
    probabilities: Sequence[float], right: Sequence[bool], bins: int = 15
) -> float:
    """How far stated confidence is from accuracy: the mean gap over bins, weighted by size.

    Args:
        probabilities: of each answer given, 0 to 1.
        right: whether it was right.
        bins: of equal width.

    Raises:
        InvalidRequest: nothing to measure, lists of different length, or a probability that is
            not a number from 0.
    """
    if not probabilities or len(probabilities) != len(right) or bins < 1:
        raise InvalidRequest("give at least one probability, and for each whether it was right")
    if not all(0 <= p < math.inf for p in probabilities):
        raise InvalidRequest("a probability is below 0 or no number; give numbers from 0 to 1")
    gaps = [0.0] * bins  # confidence less right answers
    for p, ok in zip(probabilities, right, strict=True):
        gaps[min(bins - 1, max(0, math.ceil(p * bins) - 1))] += p - bool(ok)
    return sum(map(abs, gaps)) / len(probabilities)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted for one checkpoint; whatever was not is left out.

    Attributes:
        temperatures: of a kind of question ("predicate", "choice", "score"); others have 1.
        restart_after: steps after which 95 % of the canvases that converge have done so; what
            `restart_after="auto"` means.
        least_logprob: the encoder's mean log-probability of a canvas, in nats, that 95 % of the
            right answers reach; `quality="careful"` restarts a canvas below it.

    Raises:
        InvalidRequest: a temperature that is not a number from 0.05 to 20, a limit that is not an
            integer from 1 to 10,000, or a log-probability that is not a number from -1,000 to 0.
    """

    temperatures: Mapping[str, float] = field(default_factory=dict)
    restart_after: int | None = None
    least_logprob: float | None = None

    def __post_init__(self) -> None:
        steps, least = self.restart_after, self.least_logprob
        if steps is not None and (type(steps) is not int or not 1 <= steps <= MOST_STEPS):
            raise InvalidRequest(
                f"restart_after of a calibration must be an integer from 1 to {MOST_STEPS}, got "
                f"{short(steps)}; fit it again with: dgemma calibrate MODEL"
            )
        if least is not None and (
            type(least) not in (int, float) or not LEAST_LOGPROB <= least <= 0
        ):
            raise InvalidRequest(
                f"least_logprob of a calibration must be a number from {LEAST_LOGPROB} to 0, got "
                f"{short(least)}; fit it again with: dgemma calibrate MODEL"
            )
        for kind, value in self.temperatures.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not isinstance(kind, str) or not number or not LEAST <= value <= MOST:
                raise InvalidRequest(
                    f"temperature of {short(kind)} must be a number from {LEAST} to {MOST}; "
                    "fit one again"
                )

    def temperature(self, kind: str) -> float:
        """Of a kind of question."""
        return self.temperatures.get(kind, 1.0)

    @classmethod
    def fit(
        cls, examples: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[int]]]
    ) -> Calibration:
        """From each kind's uncalibrated probabilities and right choices; see `fit_temperature`."""
        return cls({kind: fit_temperature(p, right) for kind, (p, right) in examples.items()})

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all.

        Raises:
            InvalidRequest: it cannot be written there.
        """
        path = Path(path)
        found = {name: getattr(self, name) for name in LIMITS}
        limits = {name: value for name, value in found.items() if value is not None}
        text = json.dumps(
            {"format": FORMAT, "temperatures": dict(self.temperatures)}
            | ({"limits": limits} if limits else {}), indent=1,
        )  # fmt: skip
        try:
            replace_file(path, f"{text}\n".encode())
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be written ({error}); choose another") from error

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            InvalidRequest: no such file, or one that holds something else.
        """
        try:
            found = read_json(path, MIB)
        except (OSError, ValueError) as error:
            why = f"{path} is not a calibration ({reason(error)})"
            raise InvalidRequest(f"{why}; fit one again, or remove it") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InvalidRequest(f"{path} is not a calibration of format {FORMAT}; fit one again")
        temperatures = found.get("temperatures")
        if not isinstance(temperatures, dict):
            raise InvalidRequest(f"{path} names no temperatures; fit a calibration again")
        limits = found.get("limits", {})
        if not isinstance(limits, dict):
            raise InvalidRequest(f"{path}: limits must be an object; fit a calibration again")
        for name in limits:
            if name not in LIMITS:
                known = nearest(name, LIMITS)
                raise InvalidRequest(f"{path}: unknown limit {short(name)}{known}; fit it again")
        try:
            return cls(temperatures, **limits)
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}: {error}") from error

    @property
    def limits(self) -> tuple[int | None, float | None]:
        """`restart_after` and `least_logprob`."""
        return self.restart_after, self.least_logprob

    @classmethod
    def of(cls, given: str | Path | None, directory: Path) -> Calibration:
        """The given file, else the one beside a checkpoint; an empty one if there is none.

        Raises:
            InvalidRequest: the given file is not there, or holds something else.
            ConfigError: the one beside the checkpoint does.
        """
        if given is not None:
            if not exists(Path(given)):
                raise InvalidRequest(f"{given} is not there; `dgemma calibrate` writes it")
            return cls.load(given)
        path = directory / FILE
        try:
            return cls.load(path) if exists(path) else cls()
        except InvalidRequest as error:
            raise ConfigError(str(error)) from error
