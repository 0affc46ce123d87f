"""The names of GGUF files: the whole network in both directions."""

from __future__ import annotations

import torch

from dgemma.model.transformer import DiffusionGemma
from dgemma.weights.gguf_names import GGUF, gguf_to_ours, gguf_to_released, ours_to_gguf
from dgemma.weights.names import TEXT, layouts, to_checkpoint
from tests.support.packed_files import CONFIG


def test_every_tensor_has_one_name() -> None:
    """Catches a tensor that the table lacks, or two that share a name."""
    assert {ours for _, ours in GGUF} == {ours for _, ours in TEXT}
    with torch.device("meta"):
        names = list(DiffusionGemma(CONFIG).state_dict())
    theirs = [ours_to_gguf(name) for name in names]
    assert len(set(theirs)) == len(names)
    assert [gguf_to_ours(name) for name in theirs] == names
    assert [gguf_to_released(name) for name in theirs] == [to_checkpoint(name) for name in names]


def test_names_that_are_written_out() -> None:
    """A few of the released files, by hand: a table may be wrong in both directions alike."""
    layer = "model.decoder.layers.7"
    for theirs, released in (
        ("blk.7.ffn_gate_inp.scale", f"{layer}.router.scale"),
        ("blk.7.ffn_down_exps.scale", f"{layer}.router.per_expert_scale"),
        ("blk.7.post_ffw_norm.weight", f"{layer}.post_feedforward_layernorm.weight"),
        ("blk.7.ffn_norm.weight", f"{layer}.pre_feedforward_layernorm.weight"),
        ("blk.7.layer_output_scale.weight", f"{layer}.layer_scalar"),
        (
            "blk.7.enc_layer_output_scale.weight",
            "model.encoder.language_model.layers.7.layer_scalar",
        ),
        ("output.weight", "lm_head.weight"),
    ):
        assert gguf_to_released(theirs) == released
    for unknown in ("blk.07.attn_q.weight", "blk.x.attn_q.weight", "attn_q.weight", "blk.N.attn_q"):
        assert gguf_to_released(unknown) is None


def test_halves_of_a_stack_are_a_known_layout() -> None:
    """Gate and up apart must fill one stack, gate rows first."""
    halves = [gguf_to_released(f"blk.3.ffn_{half}_exps.weight") for half in ("gate", "up")]
    ways = layouts("layers.3.experts.gate_up_proj", (4, 96, 32))
    rows = [slice(0, 48), slice(48, 96)]
    assert {h: (slice(None), r) for h, r in zip(halves, rows, strict=True)} in ways
