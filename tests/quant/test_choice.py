"""Which kernel packed weights get, what it keeps in memory, and that answers stay what they are."""

from __future__ import annotations

import pytest
import torch

from bench.packed import affine, is_packed, layer_bytes, twin
from dgemma.evaluate.run import HELD_OUT_SEED, Tally, answers
from dgemma.kernels.int4 import Int4Matrix
from dgemma.kernels.int8 import Int8Matrix, has_int8, linear_8bit
from dgemma.llm import LLM
from dgemma.quant import choice
from dgemma.quant.affine import Affine
from dgemma.quant.choice import choose_packed
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.gguf_blocks import FORMATS, Q4_0, Q4_1, Q4_K, Q8_0
from dgemma.quant.packed import Format, Packed, has_four_bits
from dgemma.tasks import make_example
from tests.support.nano import nano

CPU = torch.device("cpu")
EIGHT: tuple[Format, ...] = (Affine(8, 64), Affine(6, 64), Float8(), Float8(128), Q8_0)
FOUR: tuple[Format, ...] = (Affine(4, 64), Affine(2, 32), Float4(16), Q4_0, Q4_1, Q4_K)
NO_VNNI = (False, "this processor has no VNNI")
computes = pytest.mark.skipif(not has_int8(CPU)[0], reason=has_int8(CPU)[1])


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with VNNI, whatever this one has; tests that compute skip without it."""
    monkeypatch.setattr(choice, "has_int8", lambda device: (device.type == "cpu", "VNNI"))


def chosen(part: str, *formats: Format, room: float = 0.0, columns: int = 704) -> tuple[str, str]:
    kernel, why = choose_packed(part, formats, [columns], CPU, torch.bfloat16, room)
    return kernel.name, why


@pytest.mark.parametrize("form", EIGHT + FOUR, ids=lambda form: form.name)
def test_by_format_and_memory(form: Format) -> None:
    """4-bit experts stay at 4 bits unless memory is free; the reason says what is rounded."""
    name, why = chosen("linear", form)
    assert name == "int8" and form.name in why and "rounded to int8 per channel" in why
    name, why = chosen("experts", form, form)
    assert name == ("int4" if form in FOUR else "int8") and form.name in why
    assert why.count(form.name) == 1
    name, why = chosen("experts", form, room=5.0)
    assert name == "int8" and (form in EIGHT or "5.0 bytes are free" in why)
    assert chosen("experts", form, EIGHT[0])[0] == "int8"  # both stacks in one way
    assert chosen("experts", form, columns=705)[0] == "int8"  # no halves


def test_nothing_slow_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no kernel the reason says so; fp32 has a reason of its own."""
    kernel, why = choose_packed("linear", EIGHT, [64], CPU, torch.float32, 9.0)
    assert kernel.name == "exact" and "rounds nothing" in why
    monkeypatch.setattr(choice, "has_int8", lambda device: NO_VNNI)
    name, why = chosen("experts", *FOUR)
    assert name == "unpacked" and "unpacked for each product" in why and "no VNNI" in why


@pytest.mark.parametrize("number", [f.number for f in FORMATS.values() if has_four_bits(f)])
def test_codes_of_blocks_are_their_numbers(number: int) -> None:
    """`groups` and `unpack` read the same bytes: Q4_K has its scales in another order."""
    form = FORMATS[number]
    generator = torch.Generator().manual_seed(number)
    shape = (6, 512 // form.elements * form.size)
    blocks = torch.randint(0, 60, shape, generator=generator, dtype=torch.uint8)
    packed = Packed(form, 512, {"blocks": blocks})
    codes, scale, bias, group = form.groups(packed.parts, 512)
    assert bias is not None
    wide, low = (part.repeat_interleave(group, 1) for part in (scale, bias))
    torch.testing.assert_close(codes * wide + low, packed.dequantise(), rtol=1e-5, atol=1e-6)


@computes
def test_what_is_kept_is_all_that_is_kept() -> None:
    """The file's parts go; experts take 4.5 bits and the rest 8: under a third of 16 bit."""
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(2, 704, 1408, generator=generator)
    four, eight = affine(stack, 4), affine(stack, 8)
    kept = choice.INT4.prepare(four)
    assert all(isinstance(one, Int4Matrix) for one in kept)
    assert sum(one.nbytes for one in kept) <= 1.02 * four.nbytes / 5 * 4.5
    kept = choice.INT8.prepare(eight)
    assert all(isinstance(one, Int8Matrix) for one in kept)
    assert sum(one.nbytes for one in kept) <= 1.02 * stack.numel()
    x = torch.randn(3, 1408, generator=generator)
    for one, numbers in zip(kept, eight.dequantise(), strict=True):
        right = x @ numbers.T
        assert (linear_8bit(x, one) - right).norm() < 0.02 * right.norm()


def packed_nano(bits: int) -> LLM:
    """Nano in bf16 with packed weights."""
    plain = nano("bfloat16")
    model = twin(plain.model, bits, CPU, group=8)
    return LLM(model, plain.checkpoint, plain.choice, plain.tokenizer, plain.template)


@computes
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(("bits", "lost"), [(8, 4), (4, 8)])
def test_answers_of_nano(bits: int, lost: int) -> None:
    """Of 32 objects it writes nearly as many right as in bf16: a kernel that is wrong in one layer
    writes none."""
    packed = packed_nano(bits)
    assert {name for part, name, _ in packed.model.kernels if part in ("experts", "linear")} == (
        {"int8"} if bits == 8 else {"int8", "int4"}
    )
    assert layer_bytes(packed.model) < layer_bytes(nano("bfloat16").model)
    right = []
    examples = [make_example("json", "heldout", HELD_OUT_SEED, i) for i in range(32)]
    for llm in (nano("bfloat16"), packed):
        tally = Tally()
        for example, output in answers(llm, examples, "diffusion", HELD_OUT_SEED, 96):
            tally.add(example, output)
        right.append(tally.scores["exact"])
    assert right[1] >= right[0] - lost and right[0] > 16


def test_names_of_what_is_packed() -> None:
    """Router, norms, table and self-conditioning stay as they are."""
    names = nano().model.state_dict()
    assert not any("router" in n or "norm" in n or "self" in n for n in filter(is_packed, names))
    assert sum(map(is_packed, names)) >= 8 * nano().config.num_layers
