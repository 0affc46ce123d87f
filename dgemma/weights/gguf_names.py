"""The names of tensors in GGUF files: one table, used in both directions.

Left the name in a GGUF file, right ours; `N` is a layer's number. Names as llama.cpp's converter
gives them to arch `diffusion-gemma`. Knows names, no files.
"""

from __future__ import annotations

import re

from dgemma.weights.names import pattern, to_checkpoint

GGUF: tuple[tuple[str, str], ...] = (
    ("token_embd.weight", "embed.weight"),
    ("output_norm.weight", "norm.weight"),
    ("self_cond_pre_norm.weight", "self_conditioning.pre_norm.weight"),
    ("self_cond_gate.weight", "self_conditioning.gate_proj.weight"),
    ("self_cond_up.weight", "self_conditioning.up_proj.weight"),
    ("self_cond_down.weight", "self_conditioning.down_proj.weight"),
    *(
        (f"blk.N.{theirs}", f"layers.N.{ours}")
        for theirs, ours in (
            ("attn_norm.weight", "input_norm.weight"),
            ("attn_q.weight", "attention.q_proj.weight"),
            ("attn_k.weight", "attention.k_proj.weight"),
            ("attn_v.weight", "attention.v_proj.weight"),
            ("attn_output.weight", "attention.o_proj.weight"),
            ("attn_q_norm.weight", "attention.q_norm.weight"),
            ("attn_k_norm.weight", "attention.k_norm.weight"),
            ("post_attention_norm.weight", "post_attention_norm.weight"),
            ("ffn_norm.weight", "pre_feedforward_norm.weight"),
            ("ffn_gate.weight", "mlp.gate_proj.weight"),
            ("ffn_up.weight", "mlp.up_proj.weight"),
            ("ffn_down.weight", "mlp.down_proj.weight"),
            ("post_ffw_norm_1.weight", "post_feedforward_norm_1.weight"),
            ("ffn_gate_inp.weight", "router.proj.weight"),
            ("ffn_gate_inp.scale", "router.scale"),
            ("pre_ffw_norm_2.weight", "pre_feedforward_norm_2.weight"),
            ("ffn_gate_up_exps.weight", "experts.gate_up_proj"),
            ("ffn_down_exps.weight", "experts.down_proj"),
            ("ffn_down_exps.scale", "router.per_expert_scale"),
            ("post_ffw_norm_2.weight", "post_feedforward_norm_2.weight"),
            ("post_ffw_norm.weight", "post_feedforward_norm.weight"),
            ("layer_output_scale.weight", "denoise_scalar"),
            ("enc_layer_output_scale.weight", "encode_scalar"),
        )
    ),
)
"""`ffn_down_exps.scale` in an NVFP4 file is the scale of each matrix times that of each expert, so
it is all that the router needs to know."""

SPLIT_EXPERTS: tuple[tuple[str, str], ...] = (
    ("blk.N.ffn_gate_exps.weight", "model.decoder.layers.N.experts.switch_glu.gate_proj.weight"),
    ("blk.N.ffn_up_exps.weight", "model.decoder.layers.N.experts.switch_glu.up_proj.weight"),
)
"""In place of `ffn_gate_up_exps.weight`; right the names that `dgemma.weights.names` has for it."""

HEAD = ("output.weight", "lm_head.weight")
"""The head where it is written: a copy of `token_embd.weight`, or not this network."""

ROPE = "rope_freqs.weight"
"""What divides the frequency of each pair of full layers: 1 for those that turn, 1e30 for those
that do not. The config has the same as a share of the head's width."""

_OURS = dict(GGUF)
_GGUF = {ours: theirs for theirs, ours in GGUF}
_RELEASED = dict((*SPLIT_EXPERTS, HEAD))
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,8})\.")


def _pattern(name: str) -> tuple[str, str]:
    """A GGUF name with its layer number as `N`, and the number ("" if there is none)."""
    found = _BLOCK.match(name)
    return (f"blk.N.{name[found.end() :]}", found[1]) if found else (name, "")


def gguf_to_ours(name: str) -> str | None:
    """Our name of a GGUF tensor; None when the table does not know it, as the half of a stack."""
    known, layer = _pattern(name)
    ours = _OURS.get(known)
    return None if ours is None else ours.replace(".N.", f".{layer}.")


def gguf_to_released(name: str) -> str | None:
    """The released name of a GGUF tensor, or that of a part that `layouts` knows; else None."""
    ours = gguf_to_ours(name)
    if ours is not None:
        return to_checkpoint(ours)
    known, layer = _pattern(name)
    released = _RELEASED.get(known)
    return None if released is None else released.replace(".N.", f".{layer}.")


def ours_to_gguf(name: str) -> str:
    """The GGUF name of one of our tensors.

    Raises:
        KeyError: a parameter that the table lacks: our own mistake.
    """
    known, layer = pattern(name)
    return _GGUF[known].replace(".N.", f".{layer}.")
