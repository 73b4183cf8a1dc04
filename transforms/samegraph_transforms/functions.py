"""Image preprocessing as ONNX model-local functions: standard operators only, bit-equal to Pillow.

ONNX has no operator for Pillow's 8-bit resize (its own `Resize` is off by several levels), so the package carries one as a
function in domain `samegraph`. Anything that runs ONNX runs it; `onnx.reference` and ONNX Runtime give the same bits.

How the resize works, per axis (src/libImaging/Resample.c of Pillow is the reference): the weights of every output row are
computed in double, normalised by a sequential sum, and rounded half away from zero to integers of 22 fractional bits; the
integer product sum plus 2^21 is floor-divided by 2^22 and clipped to 0..255. Both axes are such a pass, with the rounding
between them; a pass whose size does not change is skipped.

How it is fast: a row of the output only reads the few input rows its filter covers. Output rows are taken in blocks of
`BLOCK`, each block gathers the input rows it needs (still uint8), and one batched `MatMulInteger` does the product. A 24-bit
weight is three signed digits of base 256, stacked as three groups of matrix rows, so every product is uint8 × uint8 with an
int32 sum: exact, on every instruction set. One thread of an AVX-512 CPU, bicubic, Pillow 13 beside it: 373×373×3 → 224×224
2.1 ms (Pillow 1.8 ms); 1920×1080 → 224×224 9 ms (12 ms). A dense float32 product takes 18 ms and a gather of single taps
90 ms where this takes 3.

Nearest neighbour is another piece of Pillow (src/libImaging/Geometry.c): the source position of output pixel i is not computed
but added up, step by step in double from half a step on, and cut to an integer. The rounding of that sum decides which pixel is
taken, so the function adds up too. It has no passes, hence no order.

`hamming` and `lanczos` need a sine. The last bit of a sine is the mathematics library's own affair, Pillow's as well as ONNX
Runtime's; the weights are rounded to 22 bits afterwards, which hides a difference of one in the last place of a double in all but
about one weight in 10^9.

The functions, by what they are for (`{filter}` is one of `FILTERS`; `{order}` is `before13`, `since12_2` or `since13`, see
`Semantics`; those of `nearest` have no order in their names):

    PillowResize_{filter}_{order}             [H,W,C] → [h,w,C]      attribute size = [h, w]
    PillowResizeShorterSide_{filter}_{order}  [H,W,C] → [h,w,C]      attribute size: the shorter side; the longer int(size × long / short)
    PillowResizeBy_{rule}_{order}             [H,W,C] → [h,w,C]      attributes size and multiple; see below
    CenterCrop_{rounding}                     [H,W,C] → [h,w,C]      attribute size = [h, w]; zeros where the image is smaller
    CenterCropFraction_{rounding}             [H,W,C] → [s,s,C]      attribute fraction: s = int(fraction × min(H, W))
    CenterCropOn_{rounding}                   [H,W,C] → [h,w,C]      attributes size = [h, w], colour; the colour where the image is smaller
    FiveCrop                                  [H,W,C] → [5,h,w,C]    attribute size = [h, w]: top left and right, bottom left and right,
                                                                     centre (half_even); an image smaller than that fails
    TenCropHorizontal, TenCropVertical        [H,W,C] → [10,h,w,C]   the five, then the five of the flipped image
    CropBox                                   [H,W,C] → [h,w,C]      attributes offset = [top, left], size = [h, w]; zeros outside
    PadBy                                     [H,W,C] → [h,w,C]      attributes amounts = [top, left, bottom, right], colour
    PadEdge, PadReflect, PadSymmetric         [H,W,C] → [h,w,C]      attribute amounts; what `numpy.pad` puts there in the mode of that name
    PadTo_{place}                             [H,W,C] → [h,w,C]      attributes size = [h, w], colour; a larger image is cut
    FlipHorizontal, FlipVertical              [H,W,C] → [H,W,C]
    ToRGB                                     [H,W,1|2|3|4] → [H,W,3]
    ToL                                       [H,W,1|2|3|4] → [H,W,1]  (19595 R + 38470 G + 7471 B + 32768) >> 16
    OnBackground                              [H,W,1|2|3|4] → [H,W,3]  attribute colour = [r, g, b], seen through the alpha

The functions of `torch_functions` are here too.

`{rule}` says how the size follows from that of the image; with R the rounding (`int` cuts, `round` is half to even, `ceil` goes up), k the
attribute multiple, and never less than k:

    shorter_{R}    both sides k × R(size × side / shorter side / k)
    longer_{R}     both sides k × R(size × side / longer side / k)
    inside_{R}     both sides k × R(side × min(h / H, w / W) / k), size = [h, w]
    within_{R}     both sides k × R(side / max(H / h, W / w) / k), size = [h, w]; the last bit of the quotient can differ from `inside`
    cover_{R}      both sides k × R(side / min(H / h, W / w) / k), size = [h, w]
    capped         torchvision's `Resize(shorter, max_size=longest)`, size = [shorter, longest]: int(shorter × side / shorter side), and
                   where that makes a side longer than `longest`, int(longest × side / longer side) of these
    contain        `PIL.ImageOps.contain`: round(h / w × W) or round(w / h × H), size = [h, w]

`{place}` is `top_left`, `bottom_right` or `center_{rounding}`; the last with (missing / 2) rows or columns in front, rounded as stated.
`{rounding}` says what happens to an odd margin: `floor` (margin // 2), `ceil` ((margin + 1) // 2), `half_even`
(int(round(margin / 2)), as torchvision does, which pads a smaller image with (missing // 2) in front) or `toward_zero` (int(margin / 2), as
Hugging Face's fast processors do).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from string import Template
from typing import Final, Literal, get_args

import onnx
from onnx import parser

from . import opencv_functions
from .errors import AuthoringError
from .opsets import AI_ONNX, DOMAIN, DOMAIN_VERSION
from .torch_functions import torch_sources

#: Which Pillow's choice of the first pass: horizontal (`pillow<13`, which is right up to 12.1); the same, except for images more than a
#: hundred times as high as wide that get lower (`pillow>=12.2,<13`); or by cost (`pillow>=13`).
Semantics = Literal["pillow<13", "pillow>=13", "pillow>=12.2,<13"]
Rounding = Literal["floor", "ceil", "half_even", "toward_zero"]
FilterName = Literal["bilinear", "bicubic", "box", "nearest", "hamming", "lanczos"]

FILTERS: Final[tuple[FilterName, ...]] = get_args(FilterName)
SizeRounding = Literal["int", "round", "ceil"]
Place = Literal["center", "top_left", "bottom_right"]

SIZE_ROUNDINGS: Final[tuple[SizeRounding, ...]] = get_args(SizeRounding)
PLACES: Final[tuple[Place, ...]] = get_args(Place)
_ROUNDED_RULES: Final = ("shorter", "longer", "inside", "within", "cover")
#: How the size of a resized image follows from that of the image; see the module's docstring.
SIZE_RULES: Final = (*(f"{rule}_{rounding}" for rule in _ROUNDED_RULES for rounding in SIZE_ROUNDINGS), "contain", "capped")
#: What a border without a colour shows, by `numpy.pad`'s names.
PadMode = Literal["edge", "reflect", "symmetric"]
PAD_MODES: Final[tuple[PadMode, ...]] = get_args(PadMode)

ROUNDINGS: Final[tuple[Rounding, ...]] = get_args(Rounding)
SEMANTICS: Final[tuple[Semantics, ...]] = get_args(Semantics)
_ORDERS: Final[dict[Semantics, str]] = {
    "pillow<13": "before13",
    "pillow>=13": "since13",
    "pillow>=12.2,<13": "since12_2",
}

#: Output rows per block: more waste products outside the band, fewer gather overlapping rows twice. Measured best of 4, 8, 16, 32.
BLOCK: Final = 4


@dataclass(frozen=True)
class _Filter:
    """A resampling filter: its reach in output pixels and the nodes that turn distances `x` (double) into weights `w`."""

    radius: float
    body: str


# The operations and their order are those of Pillow's C functions; another order rounds differently.
_FILTER_BODIES: Final[dict[FilterName, _Filter]] = {
    "box": _Filter(
        0.5,
        """
        half = Constant <value = double {0.5}> ()
        minus_half = Constant <value = double {-0.5}> ()
        zero = Constant <value = double {0}> ()
        one = Constant <value = double {1}> ()
        above = Greater (x, minus_half)
        below = LessOrEqual (x, half)
        inside = And (above, below)
        w = Where (inside, one, zero)
        """,
    ),
    "bilinear": _Filter(
        1.0,
        """
        zero = Constant <value = double {0}> ()
        one = Constant <value = double {1}> ()
        distance = Abs (x)
        slope = Sub (one, distance)
        inside = Less (distance, one)
        w = Where (inside, slope, zero)
        """,
    ),
    "bicubic": _Filter(  # a = -0.5: near ((a+2)x - (a+3))x² + 1, far (((x-5)x + 8)x - 4)a
        2.0,
        """
        zero = Constant <value = double {0}> ()
        one = Constant <value = double {1}> ()
        two = Constant <value = double {2}> ()
        near_3 = Constant <value = double {1.5}> ()
        near_2 = Constant <value = double {2.5}> ()
        five = Constant <value = double {5}> ()
        eight = Constant <value = double {8}> ()
        four = Constant <value = double {4}> ()
        a = Constant <value = double {-0.5}> ()
        distance = Abs (x)
        n1 = Mul (near_3, distance)
        n2 = Sub (n1, near_2)
        n3 = Mul (n2, distance)
        n4 = Mul (n3, distance)
        near = Add (n4, one)
        f1 = Sub (distance, five)
        f2 = Mul (f1, distance)
        f3 = Add (f2, eight)
        f4 = Mul (f3, distance)
        f5 = Sub (f4, four)
        far = Mul (f5, a)
        is_near = Less (distance, one)
        is_far = Less (distance, two)
        far_or_none = Where (is_far, far, zero)
        w = Where (is_near, near, far_or_none)
        """,
    ),
    "hamming": _Filter(  # sin(πx) / πx × (0.54f + 0.46f cos πx): the two constants are float32 in the C code, everything else double
        1.0,
        """
        zero = Constant <value = double {0}> ()
        one = Constant <value = double {1}> ()
        pi = Constant <value = double {3.141592653589793}> ()
        c0 = Constant <value = double {0.5400000214576721}> ()
        c1 = Constant <value = double {0.46000000834465027}> ()
        distance = Abs (x)
        is_center = Equal (distance, zero)
        is_inside = Less (distance, one)
        x_pi = Mul (distance, pi)
        not_zero = Where (is_center, one, x_pi)
        sine = Sin (not_zero)
        sinc = Div (sine, not_zero)
        cosine = Cos (not_zero)
        c1_cosine = Mul (c1, cosine)
        window = Add (c0, c1_cosine)
        product = Mul (sinc, window)
        inside = Where (is_inside, product, zero)
        w = Where (is_center, one, inside)
        """,
    ),
    "lanczos": _Filter(  # sinc(x) × sinc(x / 3) for -3 <= x < 3
        3.0,
        """
        zero = Constant <value = double {0}> ()
        one = Constant <value = double {1}> ()
        three = Constant <value = double {3}> ()
        minus_three = Constant <value = double {-3}> ()
        pi = Constant <value = double {3.141592653589793}> ()
        not_below = GreaterOrEqual (x, minus_three)
        not_above = Less (x, three)
        is_inside = And (not_below, not_above)
        is_center = Equal (x, zero)
        x_safe = Where (is_center, one, x)
        x_pi = Mul (x_safe, pi)
        sine = Sin (x_pi)
        sinc = Div (sine, x_pi)
        third = Div (x_safe, three)
        third_pi = Mul (third, pi)
        third_sine = Sin (third_pi)
        third_sinc = Div (third_sine, third_pi)
        product = Mul (sinc, third_sinc)
        inside = Where (is_inside, product, zero)
        w = Where (is_center, one, inside)
        """,
    ),
}

#: How far a filter reaches from its centre, in output pixels (input pixels when it enlarges). `nearest` is not made of weights.
RADIUS: Final[Mapping[FilterName, float]] = {name: kernel.radius for name, kernel in _FILTER_BODIES.items()}

# (n_in, n_out: int64 [1]) → rows: int64 [blocks, taps], the input rows each block reads;
#                            digits: uint8 [blocks, 3·BLOCK, taps], the weights in base 256, most significant first, offset by 128.
_TAPS = Template("""
PillowTaps_$filter (n_in, n_out) => (rows, digits) {
    zero = Constant <value = double {0}> ()
    half = Constant <value = double {0.5}> ()
    one = Constant <value = double {1}> ()
    radius = Constant <value = double {$radius}> ()
    block = Constant <value = double {$block}> ()
    in_size = Cast <to = 11> (n_in)
    out_size = Cast <to = 11> (n_out)
    scale = Div (in_size, out_size)
    filter_scale = Max (scale, one)
    support = Mul (radius, filter_scale)
    inverse = Div (one, filter_scale)

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
    stop_1 = Min (upper_floor, in_size)
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
    # A running sum adds in Pillow's order; a reduction may not. Zeros outside the taps change nothing.
    tap_axis = Constant <value = int64 {2}> ()
    sums = CumSum (raw, tap_axis)
    end = Constant <value = int64[1] {-1}> ()
    total = Gather <axis = 2> (sums, end)
    weight = Div (raw, total)

    one_fixed = Constant <value = double {4194304}> ()
    fixed = Mul (weight, one_fixed)
    minus_half = Constant <value = double {-0.5}> ()
    is_negative = Less (fixed, zero)
    away = Where (is_negative, minus_half, half)
    fixed_away = Add (fixed, away)
    integer = Cast <to = 6> (fixed_away)

    # Adding 128·(1 + 256 + 65536) makes every digit of base 256 a uint8 with zero point 128.
    offset = Constant <value = int32 {8421504}> ()
    positive = Add (integer, offset)
    bits = Cast <to = 12> (positive)
    digit_axis = Constant <value = int64[1] {1}> ()
    bits_1 = Unsqueeze (bits, digit_axis)
    shifts = Constant <value = uint32[1,3,1,1] {16, 8, 0}> ()
    shifted = BitShift <direction = "RIGHT"> (bits_1, shifts)
    low = Constant <value = uint32 {255}> ()
    digit_bits = BitwiseAnd (shifted, low)
    digits_4 = Cast <to = 2> (digit_bits)
    stacked = Constant <value = int64[3] {0, $block_3, -1}> ()
    digits = Reshape (digits_4, stacked)

    # A run that reaches past the image has weight zero there: any valid row will do.
    whole = Cast <to = 7> (position)
    last_row = Sub (n_in, i1)
    valid = Min (whole, last_row)
    rows = Squeeze (valid, i1)
}
""")

# X: uint8 [N, A, C], size: int64 [1] → uint8 [size, A, C]
_RESAMPLE = Template("""
PillowResampleRows_$filter (X, size) => (Y) {
    n_in = Shape <start = 0, end = 1> (X)
    row_shape = Shape <start = 1> (X)
    rows, digits = samegraph.PillowTaps_$filter (n_in, size)
    flat = Constant <value = int64[2] {0, -1}> ()
    X_rows = Reshape (X, flat)
    runs = Gather (X_rows, rows)
    zero_point = Constant <value = uint8 {128}> ()
    products = MatMulInteger (digits, runs, zero_point)
    by_digit = Constant <value = int64[4] {0, 3, $block, -1}> ()
    products_4 = Reshape (products, by_digit)
    high, middle, low = Split <axis = 1, num_outputs = 3> (products_4)
    base = Constant <value = int32 {256}> ()
    high_up = Mul (high, base)
    upper = Add (high_up, middle)
    upper_up = Mul (upper, base)
    exact = Add (upper_up, low)
    # (exact + 2^21) >> 22, clipped; clipping below first makes the shift of an unsigned number a floor division
    half = Constant <value = int32 {2097152}> ()
    rounded = Add (exact, half)
    zero = Constant <value = int32 {0}> ()
    not_negative = Max (rounded, zero)
    unsigned = Cast <to = 12> (not_negative)
    fraction_bits = Constant <value = uint32 {22}> ()
    level = BitShift <direction = "RIGHT"> (unsigned, fraction_bits)
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

# X: uint8 [H, W, C], size: int64 [1] → one axis resized, or X itself when the size is the same already (as Pillow does)
_RESIZE_HEIGHT = Template("""
PillowResizeHeight_$filter (X, size) => (Y) {
    n_in = Shape <start = 0, end = 1> (X)
    same_1 = Equal (n_in, size)
    scalar = Constant <value = int64[0] {}> ()
    same = Reshape (same_1, scalar)
    Y = If (same) <
        then_branch = keep_height () => (kept) { kept = Identity (X) },
        else_branch = change_height () => (changed) { changed = samegraph.PillowResampleRows_$filter (X, size) }
    >
}
""")

_RESIZE_WIDTH = Template("""
PillowResizeWidth_$filter (X, size) => (Y) {
    n_in = Shape <start = 1, end = 2> (X)
    same_1 = Equal (n_in, size)
    scalar = Constant <value = int64[0] {}> ()
    same = Reshape (same_1, scalar)
    Y = If (same) <
        then_branch = keep_width () => (kept) { kept = Identity (X) },
        else_branch = change_width () => (changed) {
            # [H,W,C] as [W,C,H] and back: both are transposes of plain matrices, 20 times faster than swapping pixels of 3 bytes.
            columns = Transpose <perm = [1, 2, 0]> (X)
            resized = samegraph.PillowResampleRows_$filter (columns, size)
            changed = Transpose <perm = [2, 0, 1]> (resized)
        }
    >
}
""")

# X: uint8 [H, W, C], size: int64 [2] = (height, width) → uint8 [height, width, C]
_RESIZE_TO_BEFORE_13 = Template("""
PillowResizeTo_${filter}_before13 (X, size) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (size)
    wide = samegraph.PillowResizeWidth_$filter (X, width)
    Y = samegraph.PillowResizeHeight_$filter (wide, height)
}
""")

_RESIZE_TO_BY_SHAPE = Template("""
PillowResizeTo_${filter}_$order (X, size) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (size)
$vertical_first
    scalar = Constant <value = int64[0] {}> ()
    vertical_first = Reshape (vertical_first_1, scalar)
    Y = If (vertical_first) <
        then_branch = height_then_width () => (from_high) {
            high = samegraph.PillowResizeHeight_$filter (X, height)
            from_high = samegraph.PillowResizeWidth_$filter (high, width)
        },
        else_branch = width_then_height () => (from_wide) {
            wide = samegraph.PillowResizeWidth_$filter (X, width)
            from_wide = samegraph.PillowResizeHeight_$filter (wide, height)
        }
    >
}
""")

#: The order of passes where the shapes decide it: nodes that make `vertical_first_1` of `X`, `height`, `width` and `size`.
_VERTICAL_FIRST: Final = {
    "since13": """
    size_in = Shape <start = 0, end = 2> (X)
    lost = Sub (size_in, size)
    lost_height, lost_width = Split <axis = 0, num_outputs = 2> (lost)
    zero = Constant <value = int64[1] {0}> ()
    two = Constant <value = int64[1] {2}> ()
    lost_width_twice = Mul (lost_width, two)
    shrinks = Greater (lost_height, zero)
    shrinks_more = Greater (lost_height, lost_width_twice)
    vertical_first_1 = And (shrinks, shrinks_more)
""",
    "since12_2": """
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    hundred = Constant <value = int64[1] {100}> ()
    width_100 = Mul (width_in, hundred)
    is_tall = Greater (height_in, width_100)
    gets_lower = Less (height, height_in)
    vertical_first_1 = And (is_tall, gets_lower)
""",
}

# (n_in, n_out: int64 [1]) → rows: int64 [n_out], the input row each output row is a copy of
_NEAREST_ROWS = """
PillowNearestRows (n_in, n_out) => (rows) {
    in_size = Cast <to = 11> (n_in)
    out_size = Cast <to = 11> (n_out)
    step = Div (in_size, out_size)
    half = Constant <value = double {0.5}> ()
    half_step = Mul (step, half)
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    scalar = Constant <value = int64[0] {}> ()
    n = Reshape (n_out, scalar)
    output = Range (zero, n, one)
    is_first = Equal (output, zero)
    steps = Where (is_first, half_step, step)
    positions = CumSum (steps, zero)
    rows = Cast <to = 7> (positions)
}
"""

# X: uint8 [H, W, C], size: int64 [2] = (height, width) → uint8 [height, width, C]
_NEAREST_TO = """
PillowResizeTo_nearest (X, size) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (size)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    rows = samegraph.PillowNearestRows (height_in, height)
    columns = samegraph.PillowNearestRows (width_in, width)
    lines = Gather <axis = 0> (X, rows)
    # Whole rows are copied faster than pixels of three bytes, by so much that two transposes more than pay: 0.5 ms became 0.2.
    upright = Transpose <perm = [1, 2, 0]> (lines)
    taken = Gather <axis = 0> (upright, columns)
    Y = Transpose <perm = [2, 0, 1]> (taken)
}
"""

_RESIZE = Template("""
PillowResize_$kind <size> (X) => (Y) {
    height_width = Constant <value_ints: ints = @size> ()
    Y = samegraph.PillowResizeTo_$kind (X, height_width)
}
""")

# The longer side is int(size × long / short), a correctly rounded double quotient, cut: what Python computes in torchvision.
_RESIZE_SHORTER_SIDE = Template("""
PillowResizeShorterSide_$kind <size> (X) => (Y) {
    shorter = Constant <value_int: int = @size> ()
    size_in = Shape <start = 0, end = 2> (X)
    short = ReduceMin <keepdims = 1> (size_in)
    product = Mul (size_in, shorter)
    product_double = Cast <to = 11> (product)
    short_double = Cast <to = 11> (short)
    quotient = Div (product_double, short_double)
    height_width = Cast <to = 7> (quotient)
    Y = samegraph.PillowResizeTo_$kind (X, height_width)
}
""")

# (size_in: int64 [2], size: int64 [1] or [2], multiple: int64 [1]) → height_width: int64 [2]
_SIZE_BY = Template("""
SizeBy_$rule (size_in, size, multiple) => (height_width) {
    k = Cast <to = 11> (multiple)
    one = Constant <value = double {1}> ()
$exact
    in_multiples = Div (exact, k)
    $rounded
    at_least_one = Max (whole, one)
    sides = Mul (at_least_one, k)
    height_width = Cast <to = 7> (sides)
}
""")

_SIZE_RATIO = Template("""
    reference = $reduce <keepdims = 1> (size_in)
    product = Mul (size_in, size)
    product_double = Cast <to = 11> (product)
    reference_double = Cast <to = 11> (reference)
    exact = Div (product_double, reference_double)
""")

_SIZE_DIVIDED = Template("""
    sides_in = Cast <to = 11> (size_in)
    box = Cast <to = 11> (size)
    ratios = Div (sides_in, box)
    scale = $reduce <keepdims = 1> (ratios)
    exact = Div (sides_in, scale)
""")

_SIZE_EXACT: Final = {
    "shorter": _SIZE_RATIO.substitute(reduce="ReduceMin"),
    "longer": _SIZE_RATIO.substitute(reduce="ReduceMax"),
    "inside": """
    sides_in = Cast <to = 11> (size_in)
    box = Cast <to = 11> (size)
    ratios = Div (box, sides_in)
    scale = ReduceMin <keepdims = 1> (ratios)
    exact = Mul (sides_in, scale)
""",
    "within": _SIZE_DIVIDED.substitute(reduce="ReduceMax"),
    "cover": _SIZE_DIVIDED.substitute(reduce="ReduceMin"),
}

_SIZE_ROUNDED: Final[dict[SizeRounding, str]] = {
    "int": "whole = Floor (in_multiples)",
    "round": "whole = Round (in_multiples)",
    "ceil": "whole = Ceil (in_multiples)",
}

_SIZE_CONTAIN = """
SizeBy_contain (size_in, size, multiple) => (height_width) {
    sides_in = Cast <to = 11> (size_in)
    box = Cast <to = 11> (size)
    height_in, width_in = Split <axis = 0, num_outputs = 2> (sides_in)
    box_height, box_width = Split <axis = 0, num_outputs = 2> (box)
    ratio_in = Div (width_in, height_in)
    ratio_box = Div (box_width, box_height)
    is_wider = Greater (ratio_in, ratio_box)
    is_taller = Less (ratio_in, ratio_box)
    ratio_up = Div (height_in, width_in)
    exact_height = Mul (ratio_up, box_width)
    exact_width = Mul (ratio_in, box_height)
    rounded_height = Round (exact_height)
    rounded_width = Round (exact_width)
    height = Where (is_wider, rounded_height, box_height)
    width = Where (is_taller, rounded_width, box_width)
    sides = Concat <axis = 0> (height, width)
    one = Constant <value = double {1}> ()
    at_least_one = Max (sides, one)
    height_width = Cast <to = 7> (at_least_one)
}
"""

_SIZE_CAPPED = """
SizeBy_capped (size_in, size, multiple) => (height_width) {
    shorter, longest = Split <axis = 0, num_outputs = 2> (size)
    short = ReduceMin <keepdims = 1> (size_in)
    product = Mul (size_in, shorter)
    product_double = Cast <to = 11> (product)
    short_double = Cast <to = 11> (short)
    quotient = Div (product_double, short_double)
    free = Cast <to = 7> (quotient)
    long = ReduceMax <keepdims = 1> (free)
    capped_product = Mul (free, longest)
    capped_double = Cast <to = 11> (capped_product)
    long_double = Cast <to = 11> (long)
    capped_quotient = Div (capped_double, long_double)
    capped = Cast <to = 7> (capped_quotient)
    too_long = Greater (long, longest)
    sides = Where (too_long, capped, free)
    one = Constant <value = int64[1] {1}> ()
    height_width = Max (sides, one)
}
"""

_RESIZE_BY = Template("""
PillowResizeBy_${rule}_$kind <size, multiple> (X) => (Y) {
    wanted = Constant <value_ints: ints = @size> ()
    k = Constant <value_ints: ints = @multiple> ()
    size_in = Shape <start = 0, end = 2> (X)
    height_width = samegraph.SizeBy_$rule (size_in, wanted, k)
    Y = samegraph.PillowResizeTo_$kind (X, height_width)
}
""")

# X: uint8 [H, W, C], offset and size: int64 [2], colour: uint8 [1] or [C] → uint8 [*size, C]; `colour` outside the image.
# Turned by the colour's bits, pixels are padded with zero, and turned back.
_CUT = """
Cut (X, offset, size, colour) => (Y) {
    zero = Constant <value = int64[2] {0, 0}> ()
    height_width = Constant <value = int64[2] {0, 1}> ()
    size_in = Shape <start = 0, end = 2> (X)
    start_1 = Max (offset, zero)
    start = Min (start_1, size_in)
    wanted_stop = Add (offset, size)
    stop_1 = Min (wanted_stop, size_in)
    stop = Max (stop_1, start)
    part = Slice (X, start, stop, height_width)
    outside = Sub (zero, offset)
    pad_1 = Max (outside, zero)
    pad_before = Min (pad_1, size)
    rest = Sub (size, pad_before)
    length = Sub (stop, start)
    pad_after = Sub (rest, length)
    pads = Concat <axis = 0> (pad_before, pad_after)
    turned = BitwiseXor (part, colour)
    black = Constant <value = uint8 {0}> ()
    padded = Pad <mode = "constant"> (turned, pads, black, height_width)
    Y = BitwiseXor (padded, colour)
}
"""

_CROP_BOX = """
CropBox <offset, size> (X) => (Y) {
    top_left = Constant <value_ints: ints = @offset> ()
    height_width = Constant <value_ints: ints = @size> ()
    black = Constant <value = uint8[1] {0}> ()
    Y = samegraph.Cut (X, top_left, height_width, black)
}
"""

_PAD_BY = """
PadBy <amounts, colour> (X) => (Y) {
    pads = Constant <value_ints: ints = @amounts> ()
    levels = Constant <value_ints: ints = @colour> ()
    fill = Cast <to = 2> (levels)
    before, after = Split <axis = 0, num_outputs = 2> (pads)
    size_in = Shape <start = 0, end = 2> (X)
    both = Add (before, after)
    size = Add (size_in, both)
    zero = Constant <value = int64[2] {0, 0}> ()
    offset = Sub (zero, before)
    Y = samegraph.Cut (X, offset, size, fill)
}
"""

_PAD_TO = Template("""
PadTo_$place <size, colour> (X) => (Y) {
    height_width = Constant <value_ints: ints = @size> ()
    levels = Constant <value_ints: ints = @colour> ()
    fill = Cast <to = 2> (levels)
    size_in = Shape <start = 0, end = 2> (X)
    missing = Sub (height_width, size_in)
    zero = Constant <value = int64[2] {0, 0}> ()
    $before
    offset = Sub (zero, before)
    Y = samegraph.Cut (X, offset, height_width, fill)
}
""")

# (n_in, before, n_out: int64 [1]) → rows: int64 [n_out], the input row each output row is a copy of
_PAD_ROWS = Template("""
PadRows$mode (n_in, before, n_out) => (rows) {
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    scalar = Constant <value = int64[0] {}> ()
    n = Reshape (n_out, scalar)
    output = Range (zero, n, one)
    position = Sub (output, before)
    last = Sub (n_in, one)
$rows
}
""")

#: A reflection goes to and fro as often as the border is wide; a line that has no neighbour is repeated, as numpy.pad does.
_PAD_ROWS_BODIES: Final[dict[PadMode, str]] = {
    "edge": """
    not_after = Min (position, last)
    rows = Max (not_after, zero)
""",
    "reflect": """
    there_and_back = Mul (last, two)
    period = Max (there_and_back, one)
    there = Mod (position, period)
    back = Sub (there_and_back, there)
    rows = Min (there, back)
""",
    "symmetric": """
    period = Mul (n_in, two)
    there = Mod (position, period)
    period_last = Sub (period, one)
    back = Sub (period_last, there)
    rows = Min (there, back)
""",
}

_PAD_MODE = Template("""
Pad$mode <amounts> (X) => (Y) {
    pads = Constant <value_ints: ints = @amounts> ()
    before, after = Split <axis = 0, num_outputs = 2> (pads)
    size_in = Shape <start = 0, end = 2> (X)
    both = Add (before, after)
    size = Add (size_in, both)
    height_in, width_in = Split <axis = 0, num_outputs = 2> (size_in)
    top, left = Split <axis = 0, num_outputs = 2> (before)
    height, width = Split <axis = 0, num_outputs = 2> (size)
    rows = samegraph.PadRows$mode (height_in, top, height)
    columns = samegraph.PadRows$mode (width_in, left, width)
    lines = Gather <axis = 0> (X, rows)
    Y = Gather <axis = 1> (lines, columns)
}
""")

_FLIP = Template("""
Flip$direction (X) => (Y) {
    start = Constant <value = int64[1] {-1}> ()
    stop = Constant <value = int64[1] {-9223372036854775807}> ()
    step = Constant <value = int64[1] {-1}> ()
    axis = Constant <value = int64[1] {$axis}> ()
    Y = Slice (X, start, stop, axis, step)
}
""")

# Pillow's convert("L"): L and LA keep their level; alpha has no say.
_TO_L = """
ToL (X) => (Y) {
    channels = Shape <start = 2, end = 3> (X)
    i0 = Constant <value = int64[1] {0}> ()
    i1 = Constant <value = int64[1] {1}> ()
    i2 = Constant <value = int64[1] {2}> ()
    i3 = Constant <value = int64[1] {3}> ()
    colour_1 = GreaterOrEqual (channels, i3)
    scalar = Constant <value = int64[0] {}> ()
    colour = Reshape (colour_1, scalar)
    Y = If (colour) <
        then_branch = weigh () => (grey) {
            rgb = Slice (X, i0, i3, i2)
            levels = Cast <to = 6> (rgb)
            weights = Constant <value = int32[3] {19595, 38470, 7471}> ()
            products = Mul (levels, weights)
            sums = ReduceSum <keepdims = 1> (products, i2)
            half = Constant <value = int32 {32768}> ()
            rounded = Add (sums, half)
            bits = Cast <to = 12> (rounded)
            fraction_bits = Constant <value = uint32 {16}> ()
            level = BitShift <direction = "RIGHT"> (bits, fraction_bits)
            grey = Cast <to = 2> (level)
        },
        else_branch = keep_grey () => (first) { first = Slice (X, i0, i1, i2) }
    >
}
"""

# Pillow's paste through a mask: t = background (255 - alpha) + image alpha + 128, then (t + (t >> 8)) >> 8. Its alpha_composite has seven
# bits more on the way and gives the same on a background that is opaque everywhere: floor(t + floor(t / 2) / 128) is t + floor(t / 256).
_ON_BACKGROUND = """
OnBackground <colour> (X) => (Y) {
    channels = Shape <start = 2, end = 3> (X)
    i2 = Constant <value = int64[1] {2}> ()
    zero = Constant <value = int64[1] {0}> ()
    odd = Mod (channels, i2)
    has_alpha_1 = Equal (odd, zero)
    scalar = Constant <value = int64[0] {}> ()
    has_alpha = Reshape (has_alpha_1, scalar)
    rgb = samegraph.ToRGB (X)
    levels = Constant <value_ints: ints = @colour> ()
    background = Cast <to = 12> (levels)
    Y = If (has_alpha) <
        then_branch = blend () => (seen) {
            last = Constant <value = int64[1] {-1}> ()
            alpha_8 = Slice (X, last, channels, i2)
            alpha = Cast <to = 12> (alpha_8)
            image = Cast <to = 12> (rgb)
            opaque = Constant <value = uint32 {255}> ()
            through = Sub (opaque, alpha)
            behind = Mul (background, through)
            before = Mul (image, alpha)
            both = Add (behind, before)
            half = Constant <value = uint32 {128}> ()
            t = Add (both, half)
            eight = Constant <value = uint32 {8}> ()
            t_up = BitShift <direction = "RIGHT"> (t, eight)
            t_both = Add (t, t_up)
            level = BitShift <direction = "RIGHT"> (t_both, eight)
            seen = Cast <to = 2> (level)
        },
        else_branch = opaque_image () => (same) { same = Identity (rgb) }
    >
}
"""

# X: uint8 [H, W, C], offset and size: int64 [2] → uint8 [*size, C]; pixels outside the image are zero, as in Pillow's crop
_CROP = """
Crop (X, offset, size) => (Y) {
    zero = Constant <value = int64[2] {0, 0}> ()
    height_width = Constant <value = int64[2] {0, 1}> ()
    size_in = Shape <start = 0, end = 2> (X)
    wanted_stop = Add (offset, size)
    start = Max (offset, zero)
    stop = Min (wanted_stop, size_in)
    part = Slice (X, start, stop, height_width)
    pad_before = Sub (start, offset)
    pad_after = Sub (wanted_stop, stop)
    pads = Concat <axis = 0> (pad_before, pad_after)
    black = Constant <value = uint8 {0}> ()
    Y = Pad <mode = "constant"> (part, pads, black, height_width)
}
"""

# margin: int64 [2] = image size - crop size → offset: int64 [2]
_ROUNDING_BODIES: Final[dict[Rounding, str]] = {
    "floor": """
        two = Constant <value = double {2}> ()
        margin_double = Cast <to = 11> (margin)
        half = Div (margin_double, two)
        offset_double = Floor (half)
        offset = Cast <to = 7> (offset_double)
        """,
    "ceil": """
        two = Constant <value = double {2}> ()
        margin_double = Cast <to = 11> (margin)
        half = Div (margin_double, two)
        offset_double = Ceil (half)
        offset = Cast <to = 7> (offset_double)
        """,
    "toward_zero": """
        two = Constant <value = double {2}> ()
        zero = Constant <value = double {0}> ()
        margin_double = Cast <to = 11> (margin)
        half = Div (margin_double, two)
        inside = Floor (half)
        outside = Ceil (half)
        is_smaller = Less (half, zero)
        offset_double = Where (is_smaller, outside, inside)
        offset = Cast <to = 7> (offset_double)
        """,
    "half_even": """
        two = Constant <value = double {2}> ()
        zero = Constant <value = double {0}> ()
        margin_double = Cast <to = 11> (margin)
        half = Div (margin_double, two)
        inside = Round (half)
        outside = Ceil (half)
        is_smaller = Less (half, zero)
        offset_double = Where (is_smaller, outside, inside)
        offset = Cast <to = 7> (offset_double)
        """,
}

_CENTER_CROP = Template("""
CenterCrop_$rounding <size> (X) => (Y) {
    crop_size = Constant <value_ints: ints = @size> ()
    size_in = Shape <start = 0, end = 2> (X)
    margin = Sub (size_in, crop_size)
    offset = samegraph.CenterOffset_$rounding (margin)
    Y = samegraph.Crop (X, offset, crop_size)
}
""")

_CENTER_CROP_ON = Template("""
CenterCropOn_$rounding <size, colour> (X) => (Y) {
    crop_size = Constant <value_ints: ints = @size> ()
    levels = Constant <value_ints: ints = @colour> ()
    fill = Cast <to = 2> (levels)
    size_in = Shape <start = 0, end = 2> (X)
    margin = Sub (size_in, crop_size)
    offset = samegraph.CenterOffset_$rounding (margin)
    Y = samegraph.Cut (X, offset, crop_size, fill)
}
""")

# X: uint8 [H, W, C], size: int64 [2] → uint8 [5, *size, C]. A cut never leaves the image: of a smaller one the pieces do not fit together.
_FIVE_CROPS = """
FiveCropsOf (X, size) => (Y) {
    top_left = Constant <value = int64[2] {0, 0}> ()
    height_width = Constant <value = int64[2] {0, 1}> ()
    nothing = Constant <value = int64[1] {0}> ()
    size_in = Shape <start = 0, end = 2> (X)
    bottom_right = Sub (size_in, size)
    bottom, right = Split <axis = 0, num_outputs = 2> (bottom_right)
    top_right = Concat <axis = 0> (nothing, right)
    bottom_left = Concat <axis = 0> (bottom, nothing)
    center = samegraph.CenterOffset_half_even (bottom_right)
    stop_1 = Add (top_left, size)
    stop_2 = Add (top_right, size)
    stop_3 = Add (bottom_left, size)
    stop_5 = Add (center, size)
    crop_1 = Slice (X, top_left, stop_1, height_width)
    crop_2 = Slice (X, top_right, stop_2, height_width)
    crop_3 = Slice (X, bottom_left, stop_3, height_width)
    crop_4 = Slice (X, bottom_right, size_in, height_width)
    crop_5 = Slice (X, center, stop_5, height_width)
    lines = Concat <axis = 0> (crop_1, crop_2, crop_3, crop_4, crop_5)
    five = Constant <value = int64[1] {5}> ()
    channels = Shape <start = 2, end = 3> (X)
    shape = Concat <axis = 0> (five, size, channels)
    Y = Reshape (lines, shape)
}
"""

_FIVE_CROP = """
FiveCrop <size> (X) => (Y) {
    crop_size = Constant <value_ints: ints = @size> ()
    Y = samegraph.FiveCropsOf (X, crop_size)
}
"""

_TEN_CROP = Template("""
TenCrop$direction <size> (X) => (Y) {
    crop_size = Constant <value_ints: ints = @size> ()
    five = samegraph.FiveCropsOf (X, crop_size)
    flipped = samegraph.Flip$direction (X)
    five_flipped = samegraph.FiveCropsOf (flipped, crop_size)
    Y = Concat <axis = 0> (five, five_flipped)
}
""")

_CENTER_CROP_FRACTION = Template("""
CenterCropFraction_$rounding <fraction> (X) => (Y) {
    part = Constant <value: tensor = @fraction> ()
    size_in = Shape <start = 0, end = 2> (X)
    short = ReduceMin <keepdims = 1> (size_in)
    short_double = Cast <to = 11> (short)
    side_double = Mul (part, short_double)
    side = Cast <to = 7> (side_double)
    crop_size = Concat <axis = 0> (side, side)
    margin = Sub (size_in, crop_size)
    offset = samegraph.CenterOffset_$rounding (margin)
    stop = Add (offset, crop_size)
    height_width = Constant <value = int64[2] {0, 1}> ()
    Y = Slice (X, offset, stop, height_width)
}
""")

# Grey is copied to three channels, alpha is dropped: what Pillow's convert("RGB") does to L, LA, RGB and RGBA.
_TO_RGB = """
ToRGB (X) => (Y) {
    channels = Shape <start = 2, end = 3> (X)
    i0 = Constant <value = int64[1] {0}> ()
    i1 = Constant <value = int64[1] {1}> ()
    i2 = Constant <value = int64[1] {2}> ()
    i3 = Constant <value = int64[1] {3}> ()
    colour_1 = GreaterOrEqual (channels, i3)
    scalar = Constant <value = int64[0] {}> ()
    colour = Reshape (colour_1, scalar)
    Y = If (colour) <
        then_branch = drop_alpha () => (rgb) { rgb = Slice (X, i0, i3, i2) },
        else_branch = copy_grey () => (grey_3) {
            grey = Slice (X, i0, i1, i2)
            size_in = Shape <start = 0, end = 2> (X)
            rgb_shape = Concat <axis = 0> (size_in, i3)
            grey_3 = Expand (grey, rgb_shape)
        }
    >
}
"""


def resize_function(filter: FilterName, semantics: Semantics, *, shorter_side: bool = False) -> str:  # noqa: A002 - Pillow's word
    """Name the function that resizes with `filter` as the stated Pillow does.

    Raises:
        AuthoringError: The filter or the semantics is unknown; the message lists what there is.
    """
    if filter not in FILTERS:
        raise AuthoringError(f"there is no bit-exact {filter!r} resize yet; choose one of {', '.join(FILTERS)}")
    if semantics not in _ORDERS:
        raise AuthoringError(f"unknown resize semantics {semantics!r}; choose one of {', '.join(SEMANTICS)}")
    return f"PillowResize{'ShorterSide' if shorter_side else ''}_{_kind(filter, semantics)}"


def resize_by_function(rule: str, filter: FilterName, semantics: Semantics) -> str:  # noqa: A002 - Pillow's word
    """Name the function that resizes to the size that `rule`, one of `SIZE_RULES`, makes of the image's.

    Raises:
        AuthoringError: As `resize_function`, or the rule is unknown.
    """
    if rule not in SIZE_RULES:
        raise AuthoringError(f"unknown rule for the size {rule!r}; choose one of {', '.join(SIZE_RULES)}")
    return resize_function(filter, semantics).replace("PillowResize_", f"PillowResizeBy_{rule}_")


def pad_to_function(place: Place, rounding: Rounding) -> str:
    """Name the function that puts an image on a canvas; `rounding` matters at the centre only."""
    return f"PadTo_center_{rounding}" if place == "center" else f"PadTo_{place}"


def pad_mode_function(mode: PadMode) -> str:
    """Name the function that puts a border around an image which continues it as `numpy.pad` does in that mode."""
    return f"Pad{mode.capitalize()}"


def resize_to_function(filter: FilterName, semantics: Semantics) -> str:  # noqa: A002 - Pillow's word
    """Name the function that resizes to a size given as an input (int64 [2] = height, width)."""
    return resize_function(filter, semantics).replace("PillowResize_", "PillowResizeTo_")


def _kind(filter: FilterName, semantics: Semantics) -> str:  # noqa: A002 - Pillow's word
    return filter if filter == "nearest" else f"{filter}_{_ORDERS[semantics]}"


def function_names() -> tuple[str, ...]:
    """Return the names of all functions this library can write."""
    return tuple(_sources())


@cache
def function(name: str) -> onnx.FunctionProto:
    """Return one function by name; treat it as read-only, it is shared.

    Raises:
        KeyError: There is no such function.
    """
    imports = f'"" : {AI_ONNX}, "{DOMAIN}" : {DOMAIN_VERSION}'
    return parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n{_sources()[name]}')


def library(names: Iterable[str]) -> list[onnx.FunctionProto]:
    """Return the functions called `names` with all functions they call, each once, callees first.

    Raises:
        KeyError: A name is not one of ours.
    """
    found: dict[str, onnx.FunctionProto] = {}
    for name in names:
        _collect(name, found)
    return list(found.values())


def called_functions(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """Name the functions of domain `samegraph` that `nodes` call directly, in first-call order, subgraphs included."""
    names: dict[str, None] = {}
    for node in nodes:
        if node.domain == DOMAIN:
            names.setdefault(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names.update(dict.fromkeys(called_functions(attribute.g.node)))
    return list(names)


def _collect(name: str, found: dict[str, onnx.FunctionProto]) -> None:
    if name in found:
        return
    proto = function(name)
    for callee in called_functions(proto.node):
        _collect(callee, found)
    found[name] = proto


@cache
def _sources() -> dict[str, str]:
    """Return the text of every function by name."""
    texts = [_CROP, _TO_RGB, _NEAREST_ROWS, _NEAREST_TO, _CUT, _CROP_BOX, _PAD_BY, _TO_L, _ON_BACKGROUND, _SIZE_CONTAIN, _SIZE_CAPPED]
    texts += [_FIVE_CROPS, _FIVE_CROP]
    for direction, axis in (("Horizontal", 1), ("Vertical", 0)):
        texts += [_FLIP.substitute(direction=direction, axis=axis), _TEN_CROP.substitute(direction=direction)]
    for mode, rows in _PAD_ROWS_BODIES.items():
        texts += [_PAD_ROWS.substitute(mode=mode.capitalize(), rows=rows), _PAD_MODE.substitute(mode=mode.capitalize())]
    befores = {"top_left": "before = Identity (zero)", "bottom_right": "before = Identity (missing)"}
    befores |= {f"center_{rounding}": f"before = samegraph.CenterOffset_{rounding} (missing)" for rounding in ROUNDINGS}
    texts += [_PAD_TO.substitute(place=place, before=before) for place, before in befores.items()]
    for (by, exact), (size_rounding, rounded) in itertools.product(_SIZE_EXACT.items(), _SIZE_ROUNDED.items()):
        texts.append(_SIZE_BY.substitute(rule=f"{by}_{size_rounding}", exact=exact, rounded=rounded))
    for rounding, body in _ROUNDING_BODIES.items():
        texts.append(f"CenterOffset_{rounding} (margin) => (offset) {{{body}}}")
        texts += [t.substitute(rounding=rounding) for t in (_CENTER_CROP, _CENTER_CROP_ON, _CENTER_CROP_FRACTION)]
    for name, kernel in _FILTER_BODIES.items():
        texts.append(f"PillowKernel_{name} (x) => (w) {{{kernel.body}}}")
        facts = {"filter": name, "radius": kernel.radius, "block": BLOCK, "block_last": BLOCK - 1, "block_3": 3 * BLOCK}
        passes = (_TAPS, _RESAMPLE, _RESIZE_HEIGHT, _RESIZE_WIDTH, _RESIZE_TO_BEFORE_13)
        texts += [t.substitute(facts) for t in passes]
        orders = _VERTICAL_FIRST.items()
        texts += [_RESIZE_TO_BY_SHAPE.substitute(filter=name, order=order, vertical_first=nodes) for order, nodes in orders]
    for name, semantics in itertools.product(FILTERS, SEMANTICS):
        texts += [t.substitute(kind=_kind(name, semantics)) for t in (_RESIZE, _RESIZE_SHORTER_SIDE)]
        texts += [_RESIZE_BY.substitute(rule=rule, kind=_kind(name, semantics)) for rule in SIZE_RULES]
    texts += torch_sources({str(name): kernel.radius for name, kernel in _FILTER_BODIES.items()}, BLOCK)
    texts += opencv_functions.texts()
    return {text.split(maxsplit=1)[0]: _without_comments(text) for text in texts}


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
