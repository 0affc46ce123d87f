"""Packed weights become numbers inside a Triton kernel, 64 columns at a time.

    columns   which columns of x belong to the low and the high nibbles of a step
    decode    the numbers of both, in fp32, rounded nowhere: [lanes, rows of the weight]

A step has 32 lanes of two codes each, or 64 of one. Formats: see `packed_matrix`. Source of the
blocks: ggml's `ggml-common.h` and `ggml-quants.c`. NaN of e4m3, which no weight has, becomes 480.
Needs the `triton` package.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns(low: tl.tensor, WIDTH: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr):
    """Columns of x of the low and high codes, and which are there; pairs lie apart in x."""
    lane = low + tl.arange(0, LANES)
    if HALF == 0:
        return lane, lane, lane < WIDTH
    elif HALF == 1:
        return lane, lane + WIDTH // 2, lane < WIDTH // 2
    else:
        first = lane // HALF * (2 * HALF) + lane % HALF
        return first, first + HALF, first < WIDTH


@triton.jit
def _number(code):
    """A small unsigned integer in fp32: its bits behind those of 2^23, without a conversion."""
    return (code.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _e4m3(code):
    """Sign, four bits of exponent, three of fraction: those of fp16 but for 2^8."""
    code = code.to(tl.uint16)
    bits = ((code & 127) << 7) | ((code & 128) << 8)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def _e2m1(code):
    """Sign, two bits of exponent, one of fraction: those of fp16 but for 2^14."""
    code = code.to(tl.uint16)
    bits = ((code & 7) << 9) | ((code & 8) << 12)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def _e8m0(code):
    """2^(code - 127)."""
    code = code.to(tl.uint32)
    return tl.where(code == 0, 0x400000, code << 23).to(tl.float32, bitcast=True)


@triton.jit
def _read(value, READ: tl.constexpr):
    if READ == "e4m3":
        return _e4m3(value)
    elif READ == "e8m0":
        return _e8m0(value)
    elif READ == "ue4m3":  # ggml: no sign, and NaN counts as 0
        return tl.where((value & 127) == 127, 0.0, _e4m3(value & 127))
    elif READ == "int8":
        return _number(value ^ 128) - 128.0
    elif READ == "bits":
        return value.to(tl.int32)
    else:
        return value.to(tl.float32)


@triton.jit
def _spread(
    at,  # [C] of the first group of this step
    use,  # [C]
    left,  # groups from there to the end of a row
    READ: tl.constexpr,
    SPAN: tl.constexpr,  # lanes of a group
    STRIDE: tl.constexpr,  # from one group to the next
    LANES: tl.constexpr,
):
    """A value of each group, for each of its lanes: [1 or LANES, C]."""
    left = tl.zeros_like(use.to(tl.int32)) + left  # the interpreter cannot spread one truth value
    value = _read(tl.load(at, mask=use & (left > 0), other=0), READ)[None, :]
    lane = tl.arange(0, LANES)[:, None]
    for group in tl.static_range(1, LANES // SPAN):
        here = tl.load(at + group * STRIDE, mask=use & (left > group), other=0)
        value = tl.where(lane < group * SPAN, value, _read(here, READ)[None, :])
    return value


@triton.jit
def _nibbles(at, use):
    """Low and high codes of bytes."""
    byte = tl.load(at, mask=use, other=0)
    return byte & 15, byte >> 4


@triton.jit
def _half_at(at, use):
    """A 16-bit float of blocks, fp32 [1, C]."""
    pointer = at.to(tl.pointer_type(tl.float16))
    return tl.load(pointer, mask=use, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _apart(
    codes, scale, extra, row, inside, low,
    KIND: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, EXTRA: tl.constexpr,
    OFFSET: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Codes, scales and biases in tensors of their own."""
    EACH: tl.constexpr = 2 if KIND == "int4" or KIND == "e2m1" else 1  # codes of a byte
    BYTES: tl.constexpr = WIDTH // EACH
    GROUPS: tl.constexpr = (WIDTH + GROUP - 1) // GROUP
    SPAN: tl.constexpr = GROUP // EACH if GROUPS > 1 else BYTES
    lane = low + tl.arange(0, LANES)[:, None]
    at = codes + row[None, :] * BYTES + lane
    use = inside[None, :] & (lane < BYTES)
    first = low // SPAN
    group = row * GROUPS + first
    s = _spread(scale + group, inside, GROUPS - first, SCALE, SPAN, 1, LANES)
    if EACH == 2:
        a, b = _nibbles(at, use)
    else:
        a = tl.load(at, mask=use, other=0)
        b = a
    if KIND == "e2m1":
        a, b = _e2m1(a) * s, _e2m1(b) * s
    elif KIND == "e4m3":
        a = _e4m3(a) * s
        b = a
    else:
        if KIND == "signed int8":
            a, b = a ^ 128, b ^ 128  # and 128 is in OFFSET
        a, b = _number(a), _number(b)
        if EXTRA == "zero":
            zero = _spread(extra + group, inside, GROUPS - first, "float", SPAN, 1, LANES)
            a, b = a - zero, b - zero
        a, b = (a - OFFSET) * s, (b - OFFSET) * s
    if EXTRA == "bias":
        bias = _spread(extra + group, inside, GROUPS - first, "float", SPAN, 1, LANES)
        a, b = a + bias, b + bias
    return a, b


@triton.jit
def _small_blocks(
    codes, row, inside, low, KIND: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """Two blocks of 32, each with its scale in front."""
    SIZE: tl.constexpr = (
        18 if KIND == "Q4_0" else 20 if KIND == "Q4_1" else 22 if KIND == "Q5_0"
        else 24 if KIND == "Q5_1" else 17 if KIND == "MXFP4" else 34
    )  # fmt: skip
    MINIMUM: tl.constexpr = KIND == "Q4_1" or KIND == "Q5_1"
    FIVE: tl.constexpr = KIND == "Q5_0" or KIND == "Q5_1"
    HEAD: tl.constexpr = 1 if KIND == "MXFP4" else 4 if MINIMUM else 2
    SPAN: tl.constexpr = LANES // 2
    first = low // SPAN
    left = WIDTH // 32 - first
    base = codes + row * (WIDTH // 32 * SIZE) + first * SIZE
    lane = tl.arange(0, LANES)[:, None]
    place = lane % SPAN
    CODES: tl.constexpr = SIZE - SPAN
    at = base[None, :] + lane // SPAN * SIZE + (CODES + place)
    use = inside[None, :] & (lane // SPAN < left)
    if KIND == "MXFP4":
        d = _spread(base, inside, left, "e8m0", SPAN, SIZE, LANES)
    else:
        halves = base.to(tl.pointer_type(tl.float16))
        d = _spread(halves, inside, left, "float", SPAN, SIZE // 2, LANES)
    if KIND == "Q8_0":
        a = d * (_number(tl.load(at, mask=use, other=0) ^ 128) - 128.0)
        b = a
    else:
        a, b = _nibbles(at, use)
        if FIVE:
            words = (base + HEAD).to(tl.pointer_type(tl.uint16))
            high = _spread(words, inside, left, "bits", SPAN, SIZE // 2, LANES)
            a = a.to(tl.int32) | (((high >> place) & 1) << 4)
            high = _spread(words + 1, inside, left, "bits", SPAN, SIZE // 2, LANES)
            b = b.to(tl.int32) | (((high >> place) & 1) << 4)
        if KIND == "MXFP4":
            a, b = d * _e2m1(a), d * _e2m1(b)
        elif MINIMUM:
            halves = (base + 2).to(tl.pointer_type(tl.float16))
            m = _spread(halves, inside, left, "float", SPAN, SIZE // 2, LANES)
            a, b = d * _number(a) + m, d * _number(b) + m
        else:
            OFFSET: tl.constexpr = 16 if FIVE else 8
            a, b = d * (_number(a) - OFFSET), d * (_number(b) - OFFSET)
    return a, b


@triton.jit
def _scale_and_minimum(at, use, j):
    """Of sub-block j of Q4_K and Q5_K, six bits each among twelve bytes: fp32 [1, C]."""
    own = tl.load(at + j, mask=use, other=0)
    later = tl.load(at + j + 4, mask=use, other=0)
    before = tl.load(at + tl.maximum(j - 4, 0), mask=use, other=0)
    s = tl.where(j < 4, own & 63, (later & 15) | ((before >> 6) << 4))
    m = tl.where(j < 4, later & 63, (later >> 4) | ((own >> 6) << 4))
    return _number(s)[None, :], _number(m)[None, :]


@triton.jit
def _four_or_five(codes, row, use, low, FIVE: tl.constexpr, WIDTH: tl.constexpr):
    """Q4_K and Q5_K: the low nibbles of 32 bytes are one sub-block, the high ones the next."""
    SIZE: tl.constexpr = 176 if FIVE else 144
    base = codes + row * (WIDTH // 256 * SIZE) + low // 128 * SIZE
    j = low // 32 % 4 * 2
    lane = tl.arange(0, 32)[:, None]
    a, b = _nibbles(base[None, :] + (SIZE - 128 + low % 128 + lane), use[None, :])
    if FIVE:
        high = tl.load(base[None, :] + (16 + lane), mask=use[None, :], other=0)
        a, b = a | (((high >> j) & 1) << 4), b | (((high >> (j + 1)) & 1) << 4)
    d, least = _half_at(base, use), _half_at(base + 2, use)
    s, m = _scale_and_minimum(base + 4, use, j)
    low_numbers = d * s * _number(a) - least * m
    s, m = _scale_and_minimum(base + 4, use, j + 1)
    return low_numbers, d * s * _number(b) - least * m


@triton.jit
def _six(codes, row, use, low, WIDTH: tl.constexpr):
    """Q6_K: four bits of a code, two more elsewhere; a scale for each sixteen."""
    base = codes + row * (WIDTH // 256 * 210) + low // 128 * 210
    inner = low % 128
    h, g = inner // 64, inner % 64 // 32
    lane = tl.arange(0, 32)[:, None]
    a, b = _nibbles(base[None, :] + (inner + lane), use[None, :])
    high = tl.load(base[None, :] + (128 + 32 * h + lane), mask=use[None, :], other=0)
    a = a | (((high >> (2 * g)) & 3) << 4)
    b = b | (((high >> (2 * g + 4)) & 3) << 4)
    d, at = _half_at(base + 208, use), base + 192 + 8 * h + 2 * g
    s = _spread(at, use, 2, "int8", 16, 1, 32)
    low_numbers = d * s * (_number(a) - 32.0)
    s = _spread(at + 4, use, 2, "int8", 16, 1, 32)
    return low_numbers, d * s * (_number(b) - 32.0)


@triton.jit
def _nvfp4(codes, row, use, low, WIDTH: tl.constexpr):
    """ggml's: four scales, then codes in halves of sixteen."""
    base = codes + row * (WIDTH // 64 * 36) + low // 32 * 36
    lane = tl.arange(0, 32)[:, None]
    a, b = _nibbles(base[None, :] + (4 + lane), use[None, :])
    s = _spread(base, use, 4, "ue4m3", 8, 1, 32)
    return s * _e2m1(a), s * _e2m1(b)


@triton.jit
def decode(
    codes, scale, extra,
    row,  # int64 [C] rows of the packed matrix
    inside,  # [C] which are there
    low,  # first lane of the step
    KIND: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, EXTRA: tl.constexpr,
    OFFSET: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Numbers of the low and high codes of a step, fp32 [LANES, C]; zero or so beyond a row."""
    low = tl.cast(low, tl.int32)  # the interpreter has a number of Python here
    if KIND == "Q4_K" or KIND == "Q5_K":
        a, b = _four_or_five(codes, row, inside, low, KIND == "Q5_K", WIDTH)
    elif KIND == "Q6_K":
        a, b = _six(codes, row, inside, low, WIDTH)
    elif KIND == "NVFP4":
        a, b = _nvfp4(codes, row, inside, low, WIDTH)
    elif SCALE == "none":
        a, b = _small_blocks(codes, row, inside, low, KIND, WIDTH, LANES)
    else:
        a, b = _apart(codes, scale, extra, row, inside, low,
                      KIND, GROUP, SCALE, EXTRA, OFFSET, WIDTH, LANES)  # fmt: skip
    if EXTRA == "outer":
        outer = tl.load(extra + row, mask=inside, other=0.0)[None, :]
        a, b = a * outer, b * outer
    return a, b
