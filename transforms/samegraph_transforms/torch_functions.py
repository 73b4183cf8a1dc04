"""PyTorch's antialiased resize of uint8 tensors as ONNX model-local functions, bit-equal; `functions` has them among its own.

`torch.nn.functional.interpolate(x, size, mode, antialias=True)` on uint8 (aten/src/ATen/native/cpu/UpSampleKernel.cpp and
UpSampleKernelAVXAntialias.h are the reference) looks like Pillow's resize and is another one. The weights of a pass are made in double by
the same formulas, but kept in 16 bits: as many fractional bits, up to 22, as let the largest weight of the whole axis stay below 2^15.
A pass is the integer product sum plus half, shifted right and clipped to 0..255. The horizontal pass always comes first, and a pass whose
size does not change is skipped. All of it is integer arithmetic once the weights are rounded, so memory layout, number of channels, threads
and vector instructions change nothing.

A weight is two signed digits of base 256, which reach from -32,896 to 32,639. The largest positive weights lie above that and the negative
ones far within it, so the digits are those of the negated weight, and the sum is taken away instead of added.

Version 1 of torchvision's functions makes float32 of uint8 first, and rounds what both passes made to the nearest level, half to even.
Then weights and sums are float32, and the last bit is that of the compiled loop, here PyTorch's for x86-64 with AVX2 or AVX-512 (in 2.8 and
2.15), found out by measuring: weights by fused multiply-adds, sums in the order of the taps, see `_FLOAT_RESAMPLE`. It counts where a sum
lies next to half a level.

    TorchResize_{filter}                  [H,W,C] → [h,w,C]    attribute size = [h, w]; in integers
    TorchResizeShorterSide_{filter}       [H,W,C] → [h,w,C]    attribute size: the shorter side; the longer int(size × long / short)
    TorchFloatResize_{filter}             [H,W,C] → [h,w,C]    as TorchResize, in float32
    TorchFloatResizeShorterSide_{filter}  [H,W,C] → [h,w,C]    as TorchResizeShorterSide, in float32
    FusedMultiplyAdd                      a, b, c → a × b + c of float32, rounded once
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Final, Literal, get_args

from .errors import AuthoringError

TorchFilter = Literal["bilinear", "bicubic"]

TORCH_FILTERS: Final[tuple[TorchFilter, ...]] = get_args(TorchFilter)
#: How the sums are made: in integers, or in float32 and rounded at the end; see the module's docstring.
Arithmetic = Literal["integer", "float32"]
ARITHMETICS: Final[tuple[Arithmetic, ...]] = get_args(Arithmetic)
_FLOAT: Final[dict[Arithmetic, str]] = {"integer": "", "float32": "Float"}

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

# (n_in, n_out: int64 [1]) → first, count: int64 [n_out], the taps each output row reads; weights: float32 [n_out, taps], zero after them.
_FLOAT_TAPS: Final = Template("""
TorchFloatTaps_$filter (n_in, n_out) => (first, count, weights) {
    zero_single = Constant <value = float {0}> ()
    one_single = Constant <value = float {1}> ()
    half = Constant <value = double {0.5}> ()
    one = Constant <value = double {1}> ()
    radius = Constant <value = float {$radius}> ()
    in_single = Cast <to = 1> (n_in)
    out_single = Cast <to = 1> (n_out)
    scale = Div (in_single, out_single)
    filter_scale = Max (scale, one_single)
    support = Mul (radius, filter_scale)
    filter_scale_double = Cast <to = 11> (filter_scale)
    inverse_double = Div (one, filter_scale_double)
    inverse_single = Cast <to = 1> (inverse_double)
    inverse = Cast <to = 11> (inverse_single)
    support_up = Ceil (support)
    support_whole = Cast <to = 7> (support_up)
    i1 = Constant <value = int64[1] {1}> ()
    support_twice = Add (support_whole, support_whole)
    most_taps = Add (support_twice, i1)

    # center = (output + 0.5) × scale in double, rounded; what follows is float32 up to a sum with 0.5, which is double
    scalar = Constant <value = int64[0] {}> ()
    n = Reshape (n_out, scalar)
    i0_scalar = Constant <value = int64 {0}> ()
    i1_scalar = Constant <value = int64 {1}> ()
    output = Range (i0_scalar, n, i1_scalar)
    output_double = Cast <to = 11> (output)
    output_middle = Add (output_double, half)
    scale_double = Cast <to = 11> (scale)
    center_double = Mul (output_middle, scale_double)
    center = Cast <to = 1> (center_double)
    lower = Sub (center, support)
    lower_double = Cast <to = 11> (lower)
    lower_half = Add (lower_double, half)
    lower_whole = Cast <to = 7> (lower_half)
    i0 = Constant <value = int64[1] {0}> ()
    first = Max (lower_whole, i0)
    upper = Add (center, support)
    upper_double = Cast <to = 11> (upper)
    upper_half = Add (upper_double, half)
    upper_whole = Cast <to = 7> (upper_half)
    stop = Min (upper_whole, n_in)
    count_inside = Sub (stop, first)
    count = Min (count_inside, most_taps)

    longest = ReduceMax <keepdims = 0> (count)
    tap = Range (i0_scalar, longest, i1_scalar)
    column = Constant <value = int64[2] {-1, 1}> ()
    first_column = Reshape (first, column)
    count_column = Reshape (count, column)
    center_column = Reshape (center, column)
    position = Add (first_column, tap)
    position_single = Cast <to = 1> (position)
    from_center = Sub (position_single, center_column)
    from_center_double = Cast <to = 11> (from_center)
    from_center_middle = Add (from_center_double, half)
    x_double = Mul (from_center_middle, inverse)
    x_single = Cast <to = 1> (x_double)
    x = Abs (x_single)
    w = samegraph.TorchFloatKernel_$filter (x)
    inside = Less (tap, count_column)
    raw = Where (inside, w, zero_single)
    tap_axis = Constant <value = int64 {1}> ()
    sums = CumSum (raw, tap_axis)
    end = Constant <value = int64[1] {-1}> ()
    total = Gather <axis = 1> (sums, end)
    weights = Div (raw, total)
}
""")

_FLOAT_KERNELS: Final[dict[TorchFilter, str]] = {
    "bilinear": """
TorchFloatKernel_bilinear (x) => (w) {
    zero = Constant <value = float {0}> ()
    one = Constant <value = float {1}> ()
    slope = Sub (one, x)
    inside = Less (x, one)
    w = Where (inside, slope, zero)
}
""",
    "bicubic": """
TorchFloatKernel_bicubic (x) => (w) {
    zero = Constant <value = float {0}> ()
    one = Constant <value = float {1}> ()
    two = Constant <value = float {2}> ()
    near_3 = Constant <value = float {1.5}> ()
    near_2 = Constant <value = float {-2.5}> ()
    far_3 = Constant <value = float {-0.5}> ()
    far_2 = Constant <value = float {2.5}> ()
    far_1 = Constant <value = float {-4}> ()
    n1 = samegraph.FusedMultiplyAdd (near_3, x, near_2)
    n2 = Mul (n1, x)
    near = samegraph.FusedMultiplyAdd (n2, x, one)
    f1 = samegraph.FusedMultiplyAdd (far_3, x, far_2)
    f2 = samegraph.FusedMultiplyAdd (f1, x, far_1)
    far = samegraph.FusedMultiplyAdd (f2, x, two)
    is_near = Less (x, one)
    is_far = Less (x, two)
    far_or_none = Where (is_far, far, zero)
    w = Where (is_near, near, far_or_none)
}
""",
}

# a × b + c of float32, rounded once. The product is exact in double. The sum s in double may round, by `error` exactly; that matters only
# where s lies at or next to the middle of two floats, where it is compared with that middle together with the error.
_FUSED: Final = """
FusedMultiplyAdd (a, b, c) => (y) {
    a_double = Cast <to = 11> (a)
    b_double = Cast <to = 11> (b)
    c_double = Cast <to = 11> (c)
    p = Mul (a_double, b_double)
    s = Add (p, c_double)
    c_part = Sub (s, p)
    p_part = Sub (s, c_part)
    p_error = Sub (p, p_part)
    c_error = Sub (c_double, c_part)
    error = Add (p_error, c_error)
    zero = Constant <value = double {0}> ()
    two = Constant <value = double {2}> ()
    little = Constant <value = double {8.8817841970012523e-16}> ()
    size = Abs (s)
    step = Mul (size, little)
    s_below = Sub (s, step)
    s_above = Add (s, step)
    below = Cast <to = 1> (s_below)
    above = Cast <to = 1> (s_above)
    below_double = Cast <to = 11> (below)
    above_double = Cast <to = 11> (above)
    both = Add (below_double, above_double)
    middle = Div (both, two)
    off = Sub (s, middle)
    beyond = Add (off, error)
    is_above = Greater (beyond, zero)
    is_below = Less (beyond, zero)
    even = Cast <to = 1> (middle)
    not_above = Where (is_below, below, even)
    y = Where (is_above, above, not_above)
}
"""

# X: float32 [N, A, C], size: int64 [1] → float32 [size, A, C]. The first product is the sum to begin with. Then PyTorch's build for
# x86-64 takes the taps by fours, rounding each product before it is added, and adds up to three that are left by fused operations.
_FLOAT_RESAMPLE: Final = Template("""
TorchFloatRows_$filter (X, size) => (Y) {
    n_in = Shape <start = 0, end = 1> (X)
    row_shape = Shape <start = 1> (X)
    first, count, weights = samegraph.TorchFloatTaps_$filter (n_in, size)
    flat = Constant <value = int64[2] {0, -1}> ()
    X_rows = Reshape (X, flat)
    i0 = Constant <value = int64[1] {0}> ()
    i1 = Constant <value = int64[1] {1}> ()
    i4 = Constant <value = int64[1] {4}> ()
    scalar = Constant <value = int64[0] {}> ()
    column = Constant <value = int64[2] {-1, 1}> ()
    last_row = Sub (n_in, i1)
    after_first = Sub (count, i1)
    fours = Div (after_first, i4)
    by_fours = Mul (fours, i4)
    taps_1 = Shape <start = 1, end = 2> (weights)
    more_taps_1 = Sub (taps_1, i1)
    more_taps = Reshape (more_taps_1, scalar)
    row_0 = Gather (X_rows, first)
    weight_0 = Slice (weights, i0, i1, i1)
    sum_0 = Mul (row_0, weight_0)
    go_on = Constant <value = bool {1}> ()
    sums = Loop (more_taps, go_on, sum_0) <
        body = add_tap (int64 i, bool keep_on, float[rows, columns] sum) => (bool still, float[rows, columns] added) {
            still = Identity (keep_on)
            j = Add (i, i1)
            position = Add (first, j)
            valid = Min (position, last_row)
            row = Gather (X_rows, valid)
            weight = Gather <axis = 1> (weights, j)
            product = Mul (row, weight)
            plain = Add (sum, product)
            is_inside_1 = Less (j, count)
            is_left_1 = Greater (j, by_fours)
            is_fused_1 = And (is_inside_1, is_left_1)
            is_fused_number = Cast <to = 7> (is_fused_1)
            any_fused_number = ReduceMax <keepdims = 0> (is_fused_number)
            any_fused = Cast <to = 9> (any_fused_number)
            next = If (any_fused) <
                then_branch = fuse () => (mixed) {
                    fused = samegraph.FusedMultiplyAdd (row, weight, sum)
                    is_fused = Reshape (is_fused_1, column)
                    mixed = Where (is_fused, fused, plain)
                },
                else_branch = do_not_fuse () => (unmixed) { unmixed = Identity (plain) }
            >
            is_inside = Reshape (is_inside_1, column)
            added = Where (is_inside, next, sum)
        }
    >
    any = Constant <value = int64[1] {-1}> ()
    shape = Concat <axis = 0> (size, row_shape)
    Y = Reshape (sums, shape)
}
""")

# X: uint8 [H, W, C], size: int64 [2] = (height, width) → uint8 [height, width, C]
_FLOAT_RESIZE_TO: Final = Template("""
TorchFloatResizeTo_$filter (X, size) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (size)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    scalar = Constant <value = int64[0] {}> ()
    X_float = Cast <to = 1> (X)
    same_width_1 = Equal (width_in, width)
    same_width = Reshape (same_width_1, scalar)
    wide = If (same_width) <
        then_branch = keep_width () => (kept_width) { kept_width = Identity (X_float) },
        else_branch = change_width () => (changed_width) {
            columns = Transpose <perm = [1, 2, 0]> (X_float)
            resized = samegraph.TorchFloatRows_$filter (columns, width)
            changed_width = Transpose <perm = [2, 0, 1]> (resized)
        }
    >
    same_height_1 = Equal (height_in, height)
    same_height = Reshape (same_height_1, scalar)
    levels = If (same_height) <
        then_branch = keep_height () => (kept_height) { kept_height = Identity (wide) },
        else_branch = change_height () => (changed_height) { changed_height = samegraph.TorchFloatRows_$filter (wide, height) }
    >
    black = Constant <value = float {0}> ()
    white = Constant <value = float {255}> ()
    not_below = Max (levels, black)
    clipped = Min (not_below, white)
    rounded = Round (clipped)
    Y = Cast <to = 2> (rounded)
}
""")

_RESIZE: Final = Template("""
Torch${float}Resize_$filter <size> (X) => (Y) {
    height_width = Constant <value_ints: ints = @size> ()
    Y = samegraph.Torch${float}ResizeTo_$filter (X, height_width)
}
""")

# The longer side is int(size × long / short), a correctly rounded double quotient, cut: what Python computes in torchvision.
_RESIZE_SHORTER_SIDE: Final = Template("""
Torch${float}ResizeShorterSide_$filter <size> (X) => (Y) {
    shorter = Constant <value_int: int = @size> ()
    size_in = Shape <start = 0, end = 2> (X)
    short = ReduceMin <keepdims = 1> (size_in)
    product = Mul (size_in, shorter)
    product_double = Cast <to = 11> (product)
    short_double = Cast <to = 11> (short)
    quotient = Div (product_double, short_double)
    height_width = Cast <to = 7> (quotient)
    Y = samegraph.Torch${float}ResizeTo_$filter (X, height_width)
}
""")


def torch_resize_function(filter: TorchFilter, arithmetic: Arithmetic = "integer", *, shorter_side: bool = False) -> str:  # noqa: A002
    """Name the function that resizes uint8 as PyTorch does with `antialias=True`.

    Raises:
        AuthoringError: The filter or the arithmetic is unknown; the message lists what there is.
    """
    if filter not in TORCH_FILTERS:
        raise AuthoringError(f"there is no bit-exact {filter!r} resize of tensors; choose one of {', '.join(TORCH_FILTERS)}")
    if arithmetic not in ARITHMETICS:
        raise AuthoringError(f"unknown arithmetic {arithmetic!r}; choose one of {', '.join(ARITHMETICS)}")
    return f"Torch{_FLOAT[arithmetic]}Resize{'ShorterSide' if shorter_side else ''}_{filter}"


def torch_sources(radius: Mapping[str, float], block: int) -> list[str]:
    """Return the text of every function.

    Args:
        radius: How far each filter reaches.
        block: Output rows per matrix product.
    """
    facts = {"block": block, "block_last": block - 1, "block_2": 2 * block}
    passes = (_TAPS, _RESAMPLE, _RESIZE_TO, _FLOAT_TAPS, _FLOAT_RESAMPLE, _FLOAT_RESIZE_TO)
    texts = [_FUSED, *_FLOAT_KERNELS.values()]
    for name in TORCH_FILTERS:
        texts += [t.substitute(facts, filter=name, radius=radius[name]) for t in passes]
        texts += [t.substitute(filter=name, float=float_) for float_ in _FLOAT.values() for t in (_RESIZE, _RESIZE_SHORTER_SIDE)]
    return texts
