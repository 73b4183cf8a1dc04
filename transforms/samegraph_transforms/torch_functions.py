"""PyTorch's antialiased resize of uint8 tensors as ONNX model-local functions, bit-equal; `functions` has them among its own.

`torch.nn.functional.interpolate(x, size, mode, antialias=True)` on uint8 (aten/src/ATen/native/cpu/UpSampleKernel.cpp and
UpSampleKernelAVXAntialias.h are the reference) looks like Pillow's resize and is another one. The weights of a pass are made in double by
the same formulas, but kept in 16 bits: as many fractional bits, up to 22, as let the largest weight of the whole axis stay below 2^15.
A pass is the integer product sum plus half, shifted right and clipped to 0..255. The horizontal pass always comes first, and a pass whose
size does not change is skipped. All of it is integer arithmetic once the weights are rounded, so memory layout, number of channels, threads
and vector instructions change nothing.

A weight is two signed digits of base 256, which reach from -32,896 to 32,639. The largest positive weights lie above that and the negative
ones far within it, so the digits are those of the negated weight, and the sum is taken away instead of added.

    TorchResize_{filter}             [H,W,C] → [h,w,C]      attribute size = [h, w]
    TorchResizeShorterSide_{filter}  [H,W,C] → [h,w,C]      attribute size: the shorter side; the longer int(size × long / short)
"""

from __future__ import annotations

from string import Template
from typing import Final, Literal, get_args

from .errors import AuthoringError

TorchFilter = Literal["bilinear", "bicubic"]

TORCH_FILTERS: Final[tuple[TorchFilter, ...]] = get_args(TorchFilter)

# (n_in, n_out: int64 [1]) → rows: int64 [blocks, taps], the input rows each block reads; digits: uint8 [blocks, 2·block, taps], the
# negated weights in base 256, high digit first, offset by 128; precision: uint32 [1], how many of their bits are a fraction.
_TAPS: Final = Template("""
TorchTaps_$filter (n_in, n_out) => (rows, digits, precision) {
    zero = Constant <value = double {0}> ()
    half = Constant <value = double {0.5}> ()
    one = Constant <value = double {1}> ()
    two = Constant <value = double {2}> ()
    radius = Constant <value = double {$radius}> ()
    block = Constant <value = double {$block}> ()
    in_size = Cast <to = 11> (n_in)
    out_size = Cast <to = 11> (n_out)
    scale = Div (in_size, out_size)
    filter_scale = Max (scale, one)
    support = Mul (radius, filter_scale)
    inverse = Div (one, filter_scale)
    support_up = Ceil (support)
    support_twice = Mul (support_up, two)
    most_taps = Add (support_twice, one)

    # The last block is filled up with copies of the last output row; the caller cuts them off.
    exact_blocks = Div (out_size, block)
    n_blocks = Ceil (exact_blocks)
    n_filled_1 = Mul (n_blocks, block)
    scalar = Constant <value = int64[0] {}> ()
    n_filled = Reshape (n_filled_1, scalar)
    filled = Range (zero, n_filled, one)
    last = Sub (out_size, one)
    output = Min (filled, last)

    # center = (output + 0.5) × scale; the taps are first <= position < stop
    output_middle = Add (output, half)
    center_1 = Mul (output_middle, scale)
    lower = Sub (center_1, support)
    lower_rounded = Add (lower, half)
    lower_floor = Floor (lower_rounded)
    first_1 = Max (lower_floor, zero)
    upper = Add (center_1, support)
    upper_rounded = Add (upper, half)
    upper_floor = Floor (upper_rounded)
    stop_inside = Min (upper_floor, in_size)
    stop_most = Add (first_1, most_taps)
    stop_1 = Min (stop_inside, stop_most)
    by_block = Constant <value = int64[3] {-1, $block, 1}> ()
    center = Reshape (center_1, by_block)
    first = Reshape (first_1, by_block)
    stop = Reshape (stop_1, by_block)

    # Every block reads one run of rows: from the first tap of its first output row, as many as the widest block needs.
    i0 = Constant <value = int64[1] {0}> ()
    i1 = Constant <value = int64[1] {1}> ()
    i_last = Constant <value = int64[1] {$block_last}> ()
    i_block = Constant <value = int64[1] {$block}> ()
    run_first = Slice (first, i0, i1, i1)
    run_stop = Slice (stop, i_last, i_block, i1)
    run_length = Sub (run_stop, run_first)
    longest = ReduceMax <keepdims = 0> (run_length)
    step = Range (zero, longest, one)
    position = Add (run_first, step)

    from_center = Sub (position, center)
    from_center_middle = Add (from_center, half)
    x = Mul (from_center_middle, inverse)
    w = samegraph.PillowKernel_$filter (x)
    not_before = GreaterOrEqual (position, first)
    not_after = Less (position, stop)
    inside = And (not_before, not_after)
    raw = Where (inside, w, zero)
    # A running sum adds in the order of the taps; a reduction may not. Zeros outside the taps change nothing.
    tap_axis = Constant <value = int64 {2}> ()
    sums = CumSum (raw, tap_axis)
    end = Constant <value = int64[1] {-1}> ()
    total = Gather <axis = 2> (sums, end)
    weight = Div (raw, total)

    # The precision is the number of powers 2^1 to 2^22 that the largest weight can be multiplied by and still round to below 2^15.
    largest = ReduceMax <keepdims = 0> (weight)
    exponents = Constant <value = double[22] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22}> ()
    powers = Pow (two, exponents)
    largest_fixed = Mul (largest, powers)
    largest_half = Add (largest_fixed, half)
    largest_whole = Floor (largest_half)
    too_large = Constant <value = double {32768}> ()
    fits = Less (largest_whole, too_large)
    fits_count = Cast <to = 11> (fits)
    precision_double = ReduceSum <keepdims = 1> (fits_count, i0)
    precision = Cast <to = 12> (precision_double)
    one_fixed = Pow (two, precision_double)

    fixed = Mul (weight, one_fixed)
    minus_half = Constant <value = double {-0.5}> ()
    is_negative = Less (fixed, zero)
    away = Where (is_negative, minus_half, half)
    fixed_away = Add (fixed, away)
    integer = Cast <to = 6> (fixed_away)

    # Adding 128·(1 + 256) makes both digits of base 256 a uint8 with zero point 128.
    offset = Constant <value = int32 {32896}> ()
    positive = Sub (offset, integer)
    bits = Cast <to = 12> (positive)
    bits_1 = Unsqueeze (bits, i1)
    shifts = Constant <value = uint32[1,2,1,1] {8, 0}> ()
    shifted = BitShift <direction = "RIGHT"> (bits_1, shifts)
    low = Constant <value = uint32 {255}> ()
    digit_bits = BitwiseAnd (shifted, low)
    digits_4 = Cast <to = 2> (digit_bits)
    stacked = Constant <value = int64[3] {0, $block_2, -1}> ()
    digits = Reshape (digits_4, stacked)

    # A run that reaches past the image has weight zero there: any valid row will do.
    whole = Cast <to = 7> (position)
    last_row = Sub (n_in, i1)
    valid = Min (whole, last_row)
    rows = Squeeze (valid, i1)
}
""")

# X: uint8 [N, A, C], size: int64 [1] → uint8 [size, A, C]
_RESAMPLE: Final = Template("""
TorchResampleRows_$filter (X, size) => (Y) {
    n_in = Shape <start = 0, end = 1> (X)
    row_shape = Shape <start = 1> (X)
    rows, digits, precision = samegraph.TorchTaps_$filter (n_in, size)
    flat = Constant <value = int64[2] {0, -1}> ()
    X_rows = Reshape (X, flat)
    runs = Gather (X_rows, rows)
    zero_point = Constant <value = uint8 {128}> ()
    products = MatMulInteger (digits, runs, zero_point)
    by_digit = Constant <value = int64[4] {0, 2, $block, -1}> ()
    products_4 = Reshape (products, by_digit)
    high, low = Split <axis = 1, num_outputs = 2> (products_4)
    base = Constant <value = int32 {256}> ()
    high_up = Mul (high, base)
    negated = Add (high_up, low)
    # (sum + half) >> precision, clipped; clipping below first makes the shift of an unsigned number a floor division
    u1 = Constant <value = uint32 {1}> ()
    before_last = Sub (precision, u1)
    half_bits = BitShift <direction = "LEFT"> (u1, before_last)
    half = Cast <to = 6> (half_bits)
    rounded = Sub (half, negated)
    zero = Constant <value = int32 {0}> ()
    not_negative = Max (rounded, zero)
    unsigned = Cast <to = 12> (not_negative)
    level = BitShift <direction = "RIGHT"> (unsigned, precision)
    white = Constant <value = uint32 {255}> ()
    clipped = Min (level, white)
    pixels = Cast <to = 2> (clipped)
    any = Constant <value = int64[1] {-1}> ()
    filled_shape = Concat <axis = 0> (any, row_shape)
    filled = Reshape (pixels, filled_shape)
    i0 = Constant <value = int64[1] {0}> ()
    Y = Slice (filled, i0, size, i0)
}
""")

# X: uint8 [H, W, C], size: int64 [2] = (height, width) → uint8 [height, width, C]
_RESIZE_TO: Final = Template("""
TorchResizeTo_$filter (X, size) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (size)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    scalar = Constant <value = int64[0] {}> ()
    same_width_1 = Equal (width_in, width)
    same_width = Reshape (same_width_1, scalar)
    wide = If (same_width) <
        then_branch = keep_width () => (kept_width) { kept_width = Identity (X) },
        else_branch = change_width () => (changed_width) {
            # [H,W,C] as [W,C,H] and back: both are transposes of plain matrices, 20 times faster than swapping pixels of 3 bytes.
            columns = Transpose <perm = [1, 2, 0]> (X)
            resized = samegraph.TorchResampleRows_$filter (columns, width)
            changed_width = Transpose <perm = [2, 0, 1]> (resized)
        }
    >
    same_height_1 = Equal (height_in, height)
    same_height = Reshape (same_height_1, scalar)
    Y = If (same_height) <
        then_branch = keep_height () => (kept_height) { kept_height = Identity (wide) },
        else_branch = change_height () => (changed_height) { changed_height = samegraph.TorchResampleRows_$filter (wide, height) }
    >
}
""")

_RESIZE: Final = Template("""
TorchResize_$filter <size> (X) => (Y) {
    height_width = Constant <value_ints: ints = @size> ()
    Y = samegraph.TorchResizeTo_$filter (X, height_width)
}
""")

# The longer side is int(size × long / short), a correctly rounded double quotient, cut: what Python computes in torchvision.
_RESIZE_SHORTER_SIDE: Final = Template("""
TorchResizeShorterSide_$filter <size> (X) => (Y) {
    shorter = Constant <value_int: int = @size> ()
    size_in = Shape <start = 0, end = 2> (X)
    short = ReduceMin <keepdims = 1> (size_in)
    product = Mul (size_in, shorter)
    product_double = Cast <to = 11> (product)
    short_double = Cast <to = 11> (short)
    quotient = Div (product_double, short_double)
    height_width = Cast <to = 7> (quotient)
    Y = samegraph.TorchResizeTo_$filter (X, height_width)
}
""")


def torch_resize_function(filter: TorchFilter, *, shorter_side: bool = False) -> str:  # noqa: A002 - as in `functions`
    """Name the function that resizes uint8 as PyTorch does with `antialias=True`.

    Raises:
        AuthoringError: The filter is unknown; the message lists what there is.
    """
    if filter not in TORCH_FILTERS:
        raise AuthoringError(f"there is no bit-exact {filter!r} resize of tensors; choose one of {', '.join(TORCH_FILTERS)}")
    return f"TorchResize{'ShorterSide' if shorter_side else ''}_{filter}"


def torch_sources(radius: dict[str, float], block: int) -> list[str]:
    """Return the text of every function.

    Args:
        radius: How far each filter reaches.
        block: Output rows per matrix product.
    """
    facts = {"block": block, "block_last": block - 1, "block_2": 2 * block}
    templates = (_TAPS, _RESAMPLE, _RESIZE_TO, _RESIZE, _RESIZE_SHORTER_SIDE)
    return [t.substitute(facts, filter=name, radius=radius[name]) for name in TORCH_FILTERS for t in templates]
