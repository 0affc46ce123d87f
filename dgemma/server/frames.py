"""Side events of a stream: where a request stands, and the drafts of its canvas.

Knows their form. Knows nothing about HTTP, or which chunk they stand beside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dgemma.server.pieces import Frame, Progress
from dgemma.server.sampling_fields import Diffusion
from dgemma.server.verdict import verdict_reply
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ENTROPY_PER_NAT, Event

STATES = ("renoised", "accepted", "pinned")
"""A position's state, by `Event.accepted`."""


def milliseconds(t_ms: float) -> float:
    """A time as it is sent."""
    return round(t_ms, 2)


def progress(piece: Progress, *, each: bool = False) -> dict[str, Any]:
    """A status or a commit.

    Args:
        each: a verdict has the log-probability of each token.
    """
    event = piece.event
    when = {"t_ms": milliseconds(event.t_ms)}
    if event.type == "commit":
        said = {
            "type": "commit", "canvas": event.canvas, "try": event.attempt,
            "tokens": len(event.ids), "steps": event.step, "whole": event.whole,
            "stop_reason": event.reason or None, **when, **piece.plan,
        }  # fmt: skip
        if event.verdict is not None:
            said["verdict"] = verdict_reply(event.verdict, each=each)
        return said
    found = {"type": "status", "state": event.state, **when, **piece.plan}
    if event.state == "queued":
        return found
    return found | {"encoded": event.step, "prompt_tokens": piece.prompt_tokens}


class FrameWriter:
    """Writes the drafts of one stream; it remembers which ids have been told."""

    def __init__(self, shown: Diffusion, tokenizer: Tokenizer) -> None:
        """`shown` says how much of a draft is sent."""
        self._detail = shown.stream
        self._tokenizer = tokenizer
        self._told: set[int] = set()

    def draft(self, piece: Frame) -> dict[str, Any]:
        """A draft as fields beside the choices: our own and those of Unsloth Studio."""
        event = piece.event
        found: dict[str, Any] = {
            "type": "frame", "canvas": event.canvas, "try": event.attempt, "step": event.step,
            "max_steps": piece.most_steps, "t_ms": milliseconds(event.t_ms),
            "temperature": round(event.temperature, 6),
            "mean_entropy": round(piece.mean_entropy, 5),
            "accepted": event.accepted.count(1), "renoised": event.accepted.count(0),
            "pinned": event.accepted.count(2), "text": piece.text, **piece.plan,
        }  # fmt: skip
        if piece.thinking:
            found["thinking"] = piece.thinking
        if self._detail == "ids":  # Unsloth's fields would only say the text again
            return {"diffusion": found | self._ids(event)}
        if self._detail == "tokens":
            found["tokens"] = self._tokens(event)
        return {
            "diffusion": found, "type": "diffusion_frame", "block": event.canvas,
            "step": event.step, "total": piece.most_steps, "text": piece.text,
        }  # fmt: skip

    def _tokens(self, event: Event) -> list[dict[str, Any]]:
        """Each position by itself."""
        rows = zip(event.ids, event.accepted, event.entropy, strict=True)
        return [
            {
                "position": position, "id": token_id, **self._piece(token_id),
                "state": STATES[state], "entropy": entropy / ENTROPY_PER_NAT,
            }
            for position, (token_id, state, entropy) in enumerate(rows)
        ]  # fmt: skip

    def _ids(self, event: Event) -> dict[str, Any]:
        """The same in far fewer bytes: lists side by side, and each id's piece once."""
        found: dict[str, Any] = {
            "ids": list(event.ids), "state": "".join(map(str, event.accepted)),
            "entropy": list(event.entropy),
        }  # fmt: skip
        told = list(event.ids)
        if event.alternatives:
            found["alternatives"] = [
                [(token_id, round(logprob, 4)) for token_id, logprob in likely]
                for likely in event.alternatives
            ]
            told += [token_id for likely in event.alternatives for token_id, _ in likely]
        return found | {"pieces": self._fresh(told)}

    def _fresh(self, ids: Iterable[int]) -> dict[int, Any]:
        """The pieces of ids that were not told before: text, or bytes that are no text."""
        fresh = dict.fromkeys(token_id for token_id in ids if token_id not in self._told)
        self._told.update(fresh)
        out: dict[int, Any] = {}
        for token_id in fresh:
            piece = self._piece(token_id)
            out[token_id] = {"bytes": piece["bytes"]} if "bytes" in piece else piece["text"]
        return out

    def _piece(self, token_id: int) -> dict[str, Any]:
        """A token's text, and its bytes if they are not whole characters."""
        text, raw = self._tokenizer.token_text(token_id), self._tokenizer.token_bytes(token_id)
        # A control token has a name and stands for no bytes.
        return {"text": text} if not raw or raw == text.encode() else {
            "text": text, "bytes": list(raw)
        }  # fmt: skip
