"""Edits of a canvas between two steps: an id is pinned or banned, or a position is forgotten.

    pin      the position holds the id from this step on, like a caller's own pin
    ban      the id has no probability there from this step on
    renoise  the position gets fresh noise and no belief; after this step it is as free as before

All draws are functions of seed, canvas, try, step and position, so the steps before an edit are the
same without it. An edit that is applied twice is like one that is applied once.
Knows nothing about networks, engines or how a step is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec
from dgemma.diffusion.control import bitset, controls_for
from dgemma.diffusion.random import Purpose, stream_keys
from dgemma.diffusion.sampler import noise_ids
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.stable import Embed
from dgemma.diffusion.tries import Tries
from dgemma.errors import InvalidRequest, bad_field
from dgemma.kernels.controls import WORD, Controls, Masks
from dgemma.params import SamplingParams
from dgemma.request_parts import CanvasControl, CanvasEdit


def edited_tries(
    tries: Tries, edits: Sequence[CanvasEdit], schedule: Schedule, spec: CanvasSpec, embed: Embed
) -> Tries:
    """The tries of a canvas, each with the edits that come before its next step."""
    running = (edited(canvas, edits, schedule, spec, embed) for canvas in tries.running)
    return replace(tries, running=tuple(running))


def edited(
    canvas: Canvas, edits: Sequence[CanvasEdit], schedule: Schedule, spec: CanvasSpec, embed: Embed
) -> Canvas:
    """A canvas with the edits that come before its next step; others are of no interest here.

    An edited canvas is not begun anew, see `Canvas.until`: that would lose the edit.

    Args:
        embed: the soft embedding of certain ids.
    """
    due = [edit for edit in edits if edit.place == (canvas.index, canvas.attempt, canvas.step)]
    if not due:
        return canvas
    controls = _controlled(canvas.controls, due, spec)
    keys = stream_keys([canvas.seed], [canvas.index], [canvas.step], Purpose.EDIT, spec.device,
                       [canvas.attempt])  # fmt: skip
    fresh = noise_ids(keys, spec.length, spec, [controls])[0]
    ids, soft = canvas.ids.clone(), None if canvas.soft is None else canvas.soft.clone()
    for edit in due:
        if edit.do == "ban":
            continue
        ids[edit.position] = fresh[edit.position] if edit.id is None else edit.id
        if soft is not None:
            soft[edit.position] = 0 if edit.id is None else embed(ids[edit.position])
    until = canvas.until or schedule.max_steps
    return replace(canvas, ids=ids, soft=soft, until=until, controls=controls)


def _controlled(controls: Controls, due: Sequence[CanvasEdit], spec: CanvasSpec) -> Controls:
    """The controls of a canvas after the edits of one step.

    Raises:
        InvalidRequest: no id is left at a position, or one is pinned that is not allowed there.
    """
    for edit in due:
        if edit.do == "ban":
            controls = _banned(controls, edit, spec)
    for edit in due:
        if edit.do == "pin":
            controls = _pinned(controls, edit, spec)
    return controls


def _pinned(controls: Controls, edit: CanvasEdit, spec: CanvasSpec) -> Controls:
    masks, position = controls.masks, edit.position
    assert edit.id is not None
    if masks is not None and masks.index[position] >= 0:
        word = int(masks.table[masks.index[position], edit.id // WORD])
        if not word >> edit.id % WORD & 1:
            raise bad_field(
                "edits", f"pin id {edit.id} at position {position}, which is not allowed there; "
                "drop one of the two"
            )  # fmt: skip
    pins = torch.full((spec.length,), -1, device=spec.device)
    pins = pins if controls.pinned is None else controls.pinned.clone()
    pins[position] = edit.id
    return replace(controls, pinned=pins)


def _banned(controls: Controls, edit: CanvasEdit, spec: CanvasSpec) -> Controls:
    masks, position = controls.masks, edit.position
    assert edit.id is not None
    if masks is None:
        free = torch.full((spec.length,), -1, device=spec.device)
        masks = Masks(_every(spec)[:0], free)
    row = int(masks.index[position])
    allowed = _every(spec)[0] if row < 0 else masks.table[row]
    left = allowed & ~torch.from_numpy(bitset((edit.id,), spec.vocab_size)).to(spec.device)
    if not left.any():
        raise bad_field("edits", f"leave no id for position {position}; ban fewer")
    index = masks.index.clone()
    index[position] = len(masks.table)
    return replace(controls, masks=Masks(torch.cat((masks.table, left[None])), index))


def _every(spec: CanvasSpec) -> Tensor:
    """int32 [1, ceil(V / 32)]: the bitset of all ids."""
    words = torch.full((1, -(-spec.vocab_size // WORD)), -1, dtype=torch.int32)
    if spec.vocab_size % WORD:
        words[0, -1] = (1 << spec.vocab_size % WORD) - 1
    return words.to(spec.device)


def check_edits(
    edits: Sequence[CanvasEdit], params: SamplingParams, control: CanvasControl | None,
    spec: CanvasSpec, schedule: Schedule, canvases: int, begun: int,
) -> None:  # fmt: skip
    """Refuse edits that can never be made, or that contradict the request or one another.

    Args:
        params: of the request, whole.
        control: of its first canvas, which begins with step `begun`.
        spec: of its canvases, of which there are at most `canvases`.

    Raises:
        InvalidRequest: the message names the edit.
    """
    for name, barred in (
        ("stable_prefix", schedule.stable_prefix), ("race", schedule.race > 1),
        ("quality", params.quality is not None),
    ):  # fmt: skip
        if barred:
            why = "an edited canvas is neither emitted early nor given up for another"
            raise bad_field("edits", f"and {name} cannot be combined: {why}; drop one of them")
    tries = schedule.tries if schedule.restart_after else 1
    bounds = {"canvas": canvases, "attempt": tries, "step": schedule.max_steps,
              "position": spec.length, "id": spec.vocab_size}  # fmt: skip
    for number, edit in enumerate(edits):
        for name, most in bounds.items():
            value = getattr(edit, name)
            least = begun if name == "step" and not edit.canvas else 0
            if value is not None and not least <= value < most:
                name = "try" if name == "attempt" else name
                raise InvalidRequest(
                    f"edits[{number}]: {name} {value} is not {least} to {most - 1}, as this "
                    f"request's are; name another {name}", field="edits",
                )  # fmt: skip
    for canvas in sorted({edit.canvas for edit in edits}):
        own = [edit for edit in edits if edit.canvas == canvas]
        if len({edit.attempt for edit in own}) > 1:
            why = "an edited try is not begun anew; keep those of one try"
            raise bad_field("edits", f"of canvas {canvas} are of several tries, but {why}")
        controls = controls_for(params, spec, None if canvas else control, canvas * spec.length)
        for step in sorted({edit.step for edit in own}):
            due = [edit for edit in own if edit.step == step]
            _check_step(due, controls)
            controls = _controlled(controls, due, spec)


def _check_step(due: Sequence[CanvasEdit], controls: Controls) -> None:
    """
    Raises:
        InvalidRequest: of the edits of one step one is made for nothing.
    """
    if len(set(due)) < len(due):
        raise bad_field("edits", "hold the same edit twice; drop one of the two")
    for edit in due:
        others = [one for one in due if one.position == edit.position and one.do == "pin"]
        held = controls.pinned is not None and controls.pinned[edit.position] >= 0
        if held or (others and others != [edit]):
            raise bad_field(
                "edits", f"that {edit.do} position {edit.position} before step {edit.step} of "
                f"canvas {edit.canvas} are made for nothing: it is pinned; drop one of the two"
            )  # fmt: skip
