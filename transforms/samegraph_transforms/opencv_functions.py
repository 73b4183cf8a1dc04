"""OpenCV's 8-bit resizes as ONNX model-local functions: standard operators only, bit-equal to `cv2.resize`.

Measured on the wheels opencv-python-headless 4.5.5, 4.14.0 and 5.0.0 for x86-64, which agree in all of this; the algorithm is that of
modules/imgproc/src/resize.cpp:

    linear     weights of 11 fractional bits, made in float32; columns first, into 32-bit integers; rows by two products that each lose
               their lowest 16 bits, then 2 more with rounding. Exactly half of both sides is `area`.
    cubic      a = -0.75; weights and columns as above. Rows in float32, eight values at a time, each such sum rounded half to even; the
               values that are left over at the end of a line are summed in integers. Both sums differ in places, so it matters where in the
               line a value lies, and with it the order of the channels.
    lanczos4   eight weights of 11 bits, integer sums throughout.
    area       smaller by whole numbers: integer sums (half of both sides rounds half up; else a product in float32, half to even).
               Smaller by other factors: sums of float32 in the order of the pixels, columns first. Larger on any side: `linear` at
               other places.
    nearest    the pixel at floor(i × scale).

The wheels for x86-64 hand `cubic` to Intel's IPP, unless `cv2.ipp.setUseIPP(False)` was called. IPP's sums are float32 of an order that is
not published, and differ from these by one level where the exact value lies halfway between two. `cubic_ipp` has the exact value rounded;
it is up to `IPP_BOUND` level away from IPP's, and cv2 itself must run in its place: see opencv_kernels.py.

    OpenCVResize_{filter}              [H,W,C] → [h,w,C]    attribute size = [h, w]
    OpenCVResizeBy_{rule}_{filter}     [H,W,C] → [h,w,C]    attributes size, multiple; see `opencv_size`
    ReverseChannels                    [H,W,C] → [H,W,C]    the channels the other way round
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from string import Template
from typing import Final, Literal, get_args

CvFilter = Literal["nearest", "linear", "area", "cubic", "lanczos4"]
CvSemantics = Literal["opencv", "opencv+ipp"]
CvSizeBy = Literal["shorter", "longer", "inside", "shorter_ratio", "longer_ratio"]
CvRounding = Literal["int", "round", "ceil", "half_up"]

CV_FILTERS: Final[tuple[CvFilter, ...]] = get_args(CvFilter)
CV_SEMANTICS: Final[tuple[CvSemantics, ...]] = get_args(CvSemantics)
CV_SIZES_BY: Final[tuple[CvSizeBy, ...]] = get_args(CvSizeBy)
CV_ROUNDINGS: Final[tuple[CvRounding, ...]] = get_args(CvRounding)
#: How the size of a resized image follows from that of the image; see `opencv_kernels.opencv_size`.
CV_SIZE_RULES: Final = tuple(f"{by}_{rounding}" for by, rounding in itertools.product(CV_SIZES_BY, CV_ROUNDINGS))
#: Names of the filters in functions: with the one that only cv2 itself computes exactly.
CV_KINDS: Final = (*CV_FILTERS, "cubic_ipp")
#: Most levels between the function `cubic_ipp` and what IPP computes.
IPP_BOUND: Final = 1


def opencv_kind(filter: CvFilter, semantics: CvSemantics) -> str:  # noqa: A002 - the field's word
    """Name the filter as functions have it: IPP has a say in `cubic` only."""
    return "cubic_ipp" if (filter, semantics) == ("cubic", "opencv+ipp") else filter


def opencv_resize_function(kind: str, rule: str | None = None) -> str:
    """Name the function that resizes to a given size, or to what a rule of `CV_SIZE_RULES` makes of the image's."""
    return f"OpenCVResize_{kind}" if rule is None else f"OpenCVResizeBy_{rule}_{kind}"


# ---------------------------------------------------------------- where the pixels of the result lie

# (n_in, n_out: int64 [1]) → scale: double [1], index: double [n_out]
_SCALE = """
OpenCVScale (n_in, n_out) => (scale, index) {
    in_size = Cast <to = 11> (n_in)
    out_size = Cast <to = 11> (n_out)
    inverse = Div (out_size, in_size)
    # A one that is no constant: ONNX Runtime makes a × (1 / b) of constants one quotient, which rounds once where OpenCV rounds twice.
    no_constant = Div (in_size, in_size)
    scale = Div (no_constant, inverse)
    one = Constant <value = double {1}> ()
    scalar = Constant <value = int64[0] {}> ()
    n = Reshape (out_size, scalar)
    zero = Constant <value = double {0}> ()
    index = Range (zero, n, one)
}
"""

# (n_in, n_out) → place: float [n_out]
_PLACE = """
OpenCVPlace (n_in, n_out) => (place) {
    scale, index = samegraph.OpenCVScale (n_in, n_out)
    half = Constant <value = double {0.5}> ()
    middle = Add (index, half)
    place_middle = Mul (middle, scale)
    place_double = Sub (place_middle, half)
    place = Cast <to = 1> (place_double)
}
"""

# (n_in, n_out) → first: int64 [n_out], the pixel before; fraction: float [n_out], the way from it to the next
_PLACES = """
OpenCVPlaces (n_in, n_out) => (first, fraction) {
    place = samegraph.OpenCVPlace (n_in, n_out)
    floor = Floor (place)
    fraction = Sub (place, floor)
    first = Cast <to = 7> (floor)
}
"""

# As OpenCVPlaces, for `area` where a side grows: each pixel of the image takes an equal part of the result, and is blended into the next.
_AREA_PLACES = """
OpenCVAreaPlaces (n_in, n_out) => (first, fraction) {
    scale, index = samegraph.OpenCVScale (n_in, n_out)
    in_size = Cast <to = 11> (n_in)
    out_size = Cast <to = 11> (n_out)
    inverse = Div (out_size, in_size)
    one = Constant <value = double {1}> ()
    place = Mul (index, scale)
    floor = Floor (place)
    next = Add (floor, one)
    next_starts = Mul (next, inverse)
    ends = Add (index, one)
    beyond_double = Sub (ends, next_starts)
    beyond = Cast <to = 1> (beyond_double)
    zero = Constant <value = float {0}> ()
    beyond_floor = Floor (beyond)
    part = Sub (beyond, beyond_floor)
    is_inside = LessOrEqual (beyond, zero)
    fraction = Where (is_inside, zero, part)
    first = Cast <to = 7> (floor)
}
"""

# fraction: float [n] → weights: float [taps, n]
_CUBIC_WEIGHTS = Template("""
OpenCVWeights_$name (fraction) => (weights) {
    x = Cast <to = $type> (fraction)
    one = Constant <value = $float {1}> ()
    a = Constant <value = $float {-0.75}> ()
    a4 = Constant <value = $float {-3}> ()
    a5 = Constant <value = $float {-3.75}> ()
    a8 = Constant <value = $float {-6}> ()
    a_and_2 = Constant <value = $float {1.25}> ()
    a_and_3 = Constant <value = $float {2.25}> ()
    next = Add (x, one)
    f1 = Mul (a, next)
    f2 = Sub (f1, a5)
    f3 = Mul (f2, next)
    f4 = Add (f3, a8)
    f5 = Mul (f4, next)
    w0 = Sub (f5, a4)
    n1 = Mul (a_and_2, x)
    n2 = Sub (n1, a_and_3)
    n3 = Mul (n2, x)
    n4 = Mul (n3, x)
    w1 = Add (n4, one)
    back = Sub (one, x)
    m1 = Mul (a_and_2, back)
    m2 = Sub (m1, a_and_3)
    m3 = Mul (m2, back)
    m4 = Mul (m3, back)
    w2 = Add (m4, one)
    r1 = Sub (one, w0)
    r2 = Sub (r1, w1)
    w3 = Sub (r2, w2)
    axis = Constant <value = int64[1] {0}> ()
    v0 = Unsqueeze (w0, axis)
    v1 = Unsqueeze (w1, axis)
    v2 = Unsqueeze (w2, axis)
    v3 = Unsqueeze (w3, axis)
    weights = Concat <axis = 0> (v0, v1, v2, v3)
}
""")

_S45: Final = "0.7071067811865476"
# The sines of all eight distances follow from one sine and one cosine by turns of 45 degrees.
_LANCZOS_WEIGHTS = f"""
OpenCVWeights_lanczos4 (fraction) => (weights) {{
    three = Constant <value = float {{3}}> ()
    quarter = Constant <value = double {{0.25}}> ()
    pi = Constant <value = double {{3.141592653589793}}> ()
    from_first = Add (fraction, three)
    to_first = Neg (from_first)
    to_first_double = Cast <to = 11> (to_first)
    to_first_pi = Mul (to_first_double, pi)
    angle = Mul (to_first_pi, quarter)
    sine = Sin (angle)
    cosine = Cos (angle)
    turn_sine = Constant <value = double[8,1] {{1, -{_S45}, 0, {_S45}, -1, {_S45}, 0, -{_S45}}}> ()
    turn_cosine = Constant <value = double[8,1] {{0, -{_S45}, 1, -{_S45}, 0, {_S45}, -1, {_S45}}}> ()
    by_sine = Mul (turn_sine, sine)
    by_cosine = Mul (turn_cosine, cosine)
    turned = Add (by_sine, by_cosine)
    taps = Constant <value = float[8,1] {{0, 1, 2, 3, 4, 5, 6, 7}}> ()
    distance = Sub (from_first, taps)
    # What is this close to a pixel would be divided by next to nothing.
    near = Constant <value = float {{1e-6}}> ()
    apart = Abs (distance)
    on_pixel = Less (apart, near)
    one = Constant <value = float {{1}}> ()
    safe_1 = Where (on_pixel, one, distance)
    safe = Neg (safe_1)
    safe_double = Cast <to = 11> (safe)
    safe_pi = Mul (safe_double, pi)
    y = Mul (safe_pi, quarter)
    square = Mul (y, y)
    usual_double = Div (turned, square)
    usual = Cast <to = 1> (usual_double)
    all_of_it = Constant <value = float {{1e30}}> ()
    raw = Where (on_pixel, all_of_it, usual)
    tap_axis = Constant <value = int64 {{0}}> ()
    sums = CumSum (raw, tap_axis)
    i7 = Constant <value = int64[1] {{7}}> ()
    sum = Gather <axis = 0> (sums, i7)
    no_constant = Div (sum, sum)
    inverse = Div (no_constant, sum)
    weights = Mul (raw, inverse)
}}
"""

# weights: float → whole numbers of 2048ths, float
_ROUNDED = """
OpenCVRounded (weights) => (fixed) {
    one = Constant <value = float {2048}> ()
    scaled = Mul (weights, one)
    rounded = Round (scaled)
    least = Constant <value = float {-32768}> ()
    most = Constant <value = float {32767}> ()
    fixed = Clip (rounded, least, most)
}
"""

# weights: float → int32, of 11 fractional bits
_FIXED = """
OpenCVFixed (weights) => (fixed) {
    rounded = samegraph.OpenCVRounded (weights)
    fixed = Cast <to = 6> (rounded)
}
"""

# (first: int64 [n], n_in: int64 [1]) → rows: int64 [taps, n], the pixels around it; the outermost ones stand in for what lies outside
_ROWS = Template("""
OpenCVRows_$taps (first, n_in) => (rows) {
    steps = Constant <value = int64[$taps,1] {$steps}> ()
    wanted = Add (first, steps)
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    not_before = Max (wanted, zero)
    last = Sub (n_in, one)
    rows = Min (not_before, last)
}
""")


def _steps(taps: int) -> str:
    return ", ".join(str(step - taps // 2 + 1) for step in range(taps))


def _sum_of_taps(taps: int, source: str, cast: str) -> str:
    """Return nodes that add weight × row over the taps into `sum`; `weights` is [taps, n, 1, 1], `rows` [taps, n]."""
    lines = [f"    {_names('row', taps)} = Split <axis = 0, num_outputs = {taps}> (rows)"]
    lines += [f"    {_names('weight', taps)} = Split <axis = 0, num_outputs = {taps}> (weights_all)"]
    lines.append("    flat = Constant <value = int64[1] {-1}> ()")
    lines.append("    by_row = Constant <value = int64[3] {-1, 1, 1}> ()")
    for tap in range(taps):
        lines += [
            f"    rows_{tap} = Reshape (row_{tap}, flat)",
            f"    weights_{tap} = Reshape (weight_{tap}, by_row)",
            f"    taken_{tap} = Gather <axis = 0> ({source}, rows_{tap})",
            f"    level_{tap} = Cast <to = {cast}> (taken_{tap})",
            f"    product_{tap} = Mul (level_{tap}, weights_{tap})",
        ]
        lines.append(
            f"    sum_{tap} = Add (sum_{tap - 1}, product_{tap})" if tap else "    sum_0 = Identity (product_0)",
        )
    return "\n".join(lines)


def _sum_of_bytes(taps: int) -> str:
    """Return nodes that add share × byte over the taps into `sum`; `shares` and `rows` are [taps, n], `upright` is what lines are of."""
    lines = [f"    {_names('row', taps)} = Split <axis = 0, num_outputs = {taps}> (rows)"]
    lines += [f"    {_names('share', taps)} = Split <axis = 0, num_outputs = {taps}> (shares)"]
    lines.append("    flat = Constant <value = int64[1] {-1}> ()")
    for tap in range(taps):
        lines += [
            f"    rows_{tap} = Reshape (row_{tap}, flat)",
            f"    shares_{tap} = Reshape (share_{tap}, flat)",
            f"    bytes_{tap} = Gather <axis = 0> (upright, rows_{tap})",
            f"    part_{tap} = DequantizeLinear <axis = 0> (bytes_{tap}, shares_{tap})",
            f"    sum_{tap} = Add (sum_{tap - 1}, part_{tap})" if tap else "    sum_0 = Identity (part_0)",
        ]
    return "\n".join(lines)


def _names(name: str, count: int) -> str:
    return ", ".join(f"{name}_{place}" for place in range(count))


# X: uint8 [H, W, C] → columns: float [H, w, C], whole numbers below 2^24, which floats hold and add without loss: levels times weights of
# 11 fractional bits. To scale bytes as they are read saves a pass over what is four times as long.
_COLUMNS = Template("""
OpenCVColumns_$name (X, width) => (columns) {
    n_in = Shape <start = 1, end = 2> (X)
    first, fraction = samegraph.OpenCVPlaces (n_in, width)
    weights = samegraph.OpenCVWeights_$name (fraction)
    shares = samegraph.OpenCVRounded (weights)
    rows = samegraph.OpenCVRows_$taps (first, n_in)
    # [H,W,C] as [W,C,H]: whole lines are taken and weighed then.
    upright = Transpose <perm = [1, 2, 0]> (X)
$sum
    columns = Transpose <perm = [2, 0, 1]> (sum_$last)
}
""")


# (first: int64 [n] from -1 to n_in - 1, n_in: int64 [1]) → before, after: int64 [n], a pixel and the next, none of which lies outside
_NEIGHBOURS = """
OpenCVNeighbours (first, n_in) => (before, after) {
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    last = Sub (n_in, one)
    next = Add (first, one)
    before = Max (first, zero)
    after = Min (next, last)
}
"""

# fraction: float [n] → before, after: float [n], whole numbers of 2048ths. Together they are 2048, or 2049 where 1 - fraction was rounded.
_SHARES = """
OpenCVShares (fraction) => (before, after) {
    one = Constant <value = float {1}> ()
    whole = Constant <value = float {2048}> ()
    rest = Sub (one, fraction)
    before_1 = Mul (rest, whole)
    before = Round (before_1)
    after_1 = Mul (fraction, whole)
    after = Round (after_1)
}
"""

# X: uint8 [H, W, C]; rows: int64 [h], a line of X for each of the result; share: int32 [h], its part in that; before, after: int64 [w] and
# share_before, share_after: float [w], the two pixels at each place of a line, 1/16 of their shares → levels: int32 [w, C, h], quarters
# of levels times 65536. Floats of 24 bits hold all products and sums in a line. Bytes are scaled in the same pass in which they are read.
_ACROSS = """
OpenCVAcross (X, rows, share, before, after, share_before, share_after) => (levels) {
    lines = Gather <axis = 0> (X, rows)
    upright = Transpose <perm = [1, 2, 0]> (lines)
    bytes_0 = Gather <axis = 0> (upright, before)
    bytes_1 = Gather <axis = 0> (upright, after)
    part_0 = DequantizeLinear <axis = 0> (bytes_0, share_before)
    part_1 = DequantizeLinear <axis = 0> (bytes_1, share_after)
    exact = Add (part_0, part_1)
    # What is behind the point is lost, which is 4 bits.
    sums = Cast <to = 6> (exact)
    # 26 bits, which a float does not hold. The lowest 16 are lost: those that a number of 16 bits keeps.
    product = Mul (sums, share)
    low_bits = Cast <to = 4> (product)
    lost = Cast <to = 6> (low_bits)
    levels = Sub (product, lost)
}
"""

# X, height_width: int64 [2] → Y; every line of the result out of two lines of integers
_TWO_LINES = Template("""
OpenCVWeighted_$name (X, height_width) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    above, below, share_above_1, share_below_1 = samegraph.OpenCVDown_$name (height_in, height)
    left, right, share_left_1, share_right_1 = samegraph.OpenCVRight_$name (width_in, width)
    share_above = Cast <to = 6> (share_above_1)
    share_below = Cast <to = 6> (share_below_1)
    sixteenth = Constant <value = float {0.0625}> ()
    share_left = Mul (share_left_1, sixteenth)
    share_right = Mul (share_right_1, sixteenth)
    levels_0 = samegraph.OpenCVAcross (X, above, share_above, left, right, share_left, share_right)
    levels_1 = samegraph.OpenCVAcross (X, below, share_below, left, right, share_left, share_right)
    levels_int = Add (levels_0, levels_1)
    levels = Cast <to = 1> (levels_int)
    # (quarters + 2) >> 2 of at most 1020 quarters of 65536: a divisor a little below four rounds every half up.
    almost_four = Constant <value = float {262078.464}> ()
    black = Constant <value = uint8 {0}> ()
    turned = QuantizeLinear (levels, almost_four, black)
    Y = Transpose <perm = [2, 0, 1]> (turned)
}
""")

# (n_in, n_out: int64 [1]) → before, after: int64 [n_out], a pixel and the next, and their shares, float [n_out]
_LINEAR_DOWN = """
OpenCVDown_linear (n_in, n_out) => (before, after, share_before, share_after) {
    first, fraction = samegraph.OpenCVPlaces (n_in, n_out)
    before, after = samegraph.OpenCVNeighbours (first, n_in)
    share_before, share_after = samegraph.OpenCVShares (fraction)
}
"""

# Beyond the outermost pixels there is no way to go, in a line; between lines it goes on with the same pixel twice.
_LINEAR_RIGHT = """
OpenCVRight_linear (n_in, n_out) => (before, after, share_before, share_after) {
    anywhere = samegraph.OpenCVPlace (n_in, n_out)
    zero = Constant <value = float {0}> ()
    one = Constant <value = int64[1] {1}> ()
    last = Sub (n_in, one)
    last_place = Cast <to = 1> (last)
    not_before = Max (anywhere, zero)
    place = Min (not_before, last_place)
    floor = Floor (place)
    fraction = Sub (place, floor)
    before = Cast <to = 7> (floor)
    next = Add (before, one)
    after = Min (next, last)
    share_before, share_after = samegraph.OpenCVShares (fraction)
}
"""

_AREA_DOWN = """
OpenCVDown_area_up (n_in, n_out) => (before, after, share_before, share_after) {
    first, fraction = samegraph.OpenCVAreaPlaces (n_in, n_out)
    before, after = samegraph.OpenCVNeighbours (first, n_in)
    share_before, share_after = samegraph.OpenCVShares (fraction)
}
"""

_AREA_RIGHT = """
OpenCVRight_area_up (n_in, n_out) => (before, after, share_before, share_after) {
    first, fraction_anywhere = samegraph.OpenCVAreaPlaces (n_in, n_out)
    zero = Constant <value = float {0}> ()
    one = Constant <value = int64[1] {1}> ()
    last = Sub (n_in, one)
    is_last = GreaterOrEqual (first, last)
    fraction = Where (is_last, zero, fraction_anywhere)
    before, after = samegraph.OpenCVNeighbours (first, n_in)
    share_before, share_after = samegraph.OpenCVShares (fraction)
}
"""

_INTEGER_SUM: Final = """
    # (sum + 2^21) >> 22, clipped; clipping below first makes the shift of an unsigned number a floor division
    half = Constant <value = int32 {2097152}> ()
    rounded = Add (sum_$last, half)
    none = Constant <value = int32 {0}> ()
    not_negative = Max (rounded, none)
    unsigned = Cast <to = 12> (not_negative)
    fraction_bits = Constant <value = uint32 {22}> ()
    level = BitShift <direction = "RIGHT"> (unsigned, fraction_bits)
    white = Constant <value = uint32 {255}> ()
    clipped = Min (level, white)
    in_integers = Cast <to = 2> (clipped)
"""

_LANCZOS_LINES = Template("""
OpenCVWeighted_lanczos4 (X, height_width) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    wide = samegraph.OpenCVColumns_lanczos4 (X, width)
    columns = Cast <to = 6> (wide)
    n_in = Shape <start = 0, end = 1> (X)
    first, fraction = samegraph.OpenCVPlaces (n_in, height)
    weights = samegraph.OpenCVWeights_lanczos4 (fraction)
    weights_all = samegraph.OpenCVFixed (weights)
    rows = samegraph.OpenCVRows_8 (first, n_in)
$sum
$integers
    Y = Identity (in_integers)
}
""")

# The last seven values of a line at most are summed in integers: only there are both sums made.
_CUBIC_LINES = Template("""
OpenCVWeighted_cubic (X, height_width) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    wide = samegraph.OpenCVColumns_cubic (X, width)
    channels = Shape <start = 2, end = 3> (X)
    values = Mul (width, channels)
    unknown = Constant <value = int64[1] {-1}> ()
    lines_of_values = Concat <axis = 0> (unknown, values)
    columns = Reshape (wide, lines_of_values)
    n_in = Shape <start = 0, end = 1> (X)
    first, fraction = samegraph.OpenCVPlaces (n_in, height)
    weights = samegraph.OpenCVWeights_cubic (fraction)
    weights_float = samegraph.OpenCVRounded (weights)
    weights_int = Cast <to = 6> (weights_float)
    unit = Constant <value = float {2.384185791015625e-07}> ()
    weights_unit = Mul (weights_float, unit)
    rows = samegraph.OpenCVRows_4 (first, n_in)
    row_0, row_1, row_2, row_3 = Split <axis = 0, num_outputs = 4> (rows)
    rows_0 = Reshape (row_0, unknown)
    rows_1 = Reshape (row_1, unknown)
    rows_2 = Reshape (row_2, unknown)
    rows_3 = Reshape (row_3, unknown)
    by_row = Constant <value = int64[2] {-1, 1}> ()
    unit_0, unit_1, unit_2, unit_3 = Split <axis = 0, num_outputs = 4> (weights_unit)
    units_0 = Reshape (unit_0, by_row)
    units_1 = Reshape (unit_1, by_row)
    units_2 = Reshape (unit_2, by_row)
    units_3 = Reshape (unit_3, by_row)
    line_0 = Gather <axis = 0> (columns, rows_0)
    line_1 = Gather <axis = 0> (columns, rows_1)
    line_2 = Gather <axis = 0> (columns, rows_2)
    line_3 = Gather <axis = 0> (columns, rows_3)
    p3 = Mul (line_3, units_3)
    p2 = Mul (line_2, units_2)
    p1 = Mul (line_1, units_1)
    p0 = Mul (line_0, units_0)
    s2 = Add (p2, p3)
    s1 = Add (p1, s2)
    s0 = Add (p0, s1)
    one_level = Constant <value = float {1}> ()
    black = Constant <value = uint8 {0}> ()
    # Rounds half to even and stops at 0 and 255.
    in_floats = QuantizeLinear (s0, one_level, black)
    # Whole groups of eight values of a line are summed in floats, the rest of it in integers.
    seven = Constant <value = int64[1] {7}> ()
    zero_i = Constant <value = int64[1] {0}> ()
    one_i = Constant <value = int64[1] {1}> ()
    eight = Constant <value = int64[1] {8}> ()
    groups = Div (values, eight)
    grouped = Mul (groups, eight)
    start_1 = Sub (values, seven)
    start = Max (start_1, zero_i)
    tail_float = Slice (columns, start, values, one_i)
    tail = Cast <to = 6> (tail_float)
    fixed_0, fixed_1, fixed_2, fixed_3 = Split <axis = 0, num_outputs = 4> (weights_int)
    weight_0 = Reshape (fixed_0, by_row)
    weight_1 = Reshape (fixed_1, by_row)
    weight_2 = Reshape (fixed_2, by_row)
    weight_3 = Reshape (fixed_3, by_row)
    level_0 = Gather <axis = 0> (tail, rows_0)
    level_1 = Gather <axis = 0> (tail, rows_1)
    level_2 = Gather <axis = 0> (tail, rows_2)
    level_3 = Gather <axis = 0> (tail, rows_3)
    product_0 = Mul (level_0, weight_0)
    product_1 = Mul (level_1, weight_1)
    product_2 = Mul (level_2, weight_2)
    product_3 = Mul (level_3, weight_3)
    sum_1 = Add (product_0, product_1)
    sum_2 = Add (sum_1, product_2)
    sum_3 = Add (sum_2, product_3)
$integers
    head = Slice (in_floats, zero_i, start, one_i)
    tail_in_floats = Slice (in_floats, start, values, one_i)
    scalar = Constant <value = int64[0] {}> ()
    start_0 = Reshape (start, scalar)
    stop_0 = Reshape (values, scalar)
    step_0 = Constant <value = int64 {1}> ()
    place = Range (start_0, stop_0, step_0)
    is_grouped = Less (place, grouped)
    end = Where (is_grouped, tail_in_floats, in_integers)
    flat = Concat <axis = 1> (head, end)
    shape = Concat <axis = 0> (height, width, channels)
    Y = Reshape (flat, shape)
}
""")

# In double: what a sum in any order and precision comes close to.
_CUBIC_IPP = Template("""
OpenCVCubicExactLines (X, size) => (sum_$last) {
    n_in = Shape <start = 0, end = 1> (X)
    scale, index = samegraph.OpenCVScale (n_in, size)
    half = Constant <value = double {0.5}> ()
    middle = Add (index, half)
    place_middle = Mul (middle, scale)
    place = Sub (place_middle, half)
    floor = Floor (place)
    fraction = Sub (place, floor)
    first = Cast <to = 7> (floor)
    weights_all = samegraph.OpenCVWeights_cubic_ipp (fraction)
    rows = samegraph.OpenCVRows_4 (first, n_in)
$sum
}
""")

_CUBIC_IPP_WHOLE = """
OpenCVWeighted_cubic_ipp (X, height_width) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    turned = Transpose <perm = [1, 2, 0]> (X)
    wide = samegraph.OpenCVCubicExactLines (turned, width)
    columns = Transpose <perm = [2, 0, 1]> (wide)
    exact = samegraph.OpenCVCubicExactLines (columns, height)
    black = Constant <value = double {0}> ()
    white = Constant <value = double {255}> ()
    rounded = Round (exact)
    level = Clip (rounded, black, white)
    Y = Cast <to = 2> (level)
}
"""

# ---------------------------------------------------------------- area

# (n_in, n_out: int64 [1]) → rows: int64 [taps, n_out] and weights: float [taps, n_out], in the order in which they are added
_AREA_TAPS = """
OpenCVAreaTaps (n_in, n_out) => (rows, weights) {
    scale, index = samegraph.OpenCVScale (n_in, n_out)
    in_size = Cast <to = 11> (n_in)
    zero = Constant <value = double {0}> ()
    one = Constant <value = double {1}> ()
    little = Constant <value = double {0.001}> ()
    begin = Mul (index, scale)
    end = Add (begin, scale)
    left_over = Sub (in_size, begin)
    cell = Min (scale, left_over)
    first_1 = Ceil (begin)
    stop_1 = Floor (end)
    last = Sub (in_size, one)
    stop = Min (stop_1, last)
    first = Min (first_1, stop)
    head = Sub (first, begin)
    has_head = Greater (head, little)
    head_double = Div (head, cell)
    tail = Sub (end, stop)
    has_tail = Greater (tail, little)
    tail_1 = Min (tail, one)
    tail_2 = Min (tail_1, cell)
    tail_double = Div (tail_2, cell)
    whole_double = Div (one, cell)
    head_float = Cast <to = 1> (head_double)
    tail_float = Cast <to = 1> (tail_double)
    whole = Cast <to = 1> (whole_double)
    none = Constant <value = float {0}> ()
    head_weight = Where (has_head, head_float, none)
    tail_weight = Where (has_tail, tail_float, none)

    length_1 = Sub (stop, first)
    two = Constant <value = double {2}> ()
    length = Add (length_1, two)
    longest = ReduceMax <keepdims = 0> (length)
    step_1 = Range (zero, longest, one)
    axis = Constant <value = int64[1] {1}> ()
    step = Unsqueeze (step_1, axis)
    before = Sub (first, one)
    place = Add (before, step)
    is_head = Less (place, first)
    is_tail = Equal (place, stop)
    is_beyond = Greater (place, stop)
    inner = Where (is_head, head_weight, whole)
    outer = Where (is_tail, tail_weight, inner)
    weights = Where (is_beyond, none, outer)
    not_before = Max (place, zero)
    valid = Min (not_before, last)
    rows = Cast <to = 7> (valid)
}
"""

# X: [N, A, B], rows: int64 [taps, n], weights: [taps, n], wanted: int64 [1] → Y: [n, A, B], the products added one after the other; all of
# one type. Zeros, without work, where wanted is 0. The loop lies in no branch of an `If`: ONNX Runtime, where it knows the condition
# beforehand, forgets what a loop in the branch reads from outside.
_ADD_LINES = Template("""
OpenCVAddLines_$name (X, rows, weights, wanted) => (Y) {
    taps_of = Shape <start = 0, end = 1> (rows)
    taps_1 = Mul (taps_of, wanted)
    scalar = Constant <value = int64[0] {}> ()
    taps = Reshape (taps_1, scalar)
    n = Shape <start = 1, end = 2> (rows)
    line = Shape <start = 1, end = 3> (X)
    shape = Concat <axis = 0> (n, line)
    begin = ConstantOfShape <value = $type[1] {0}> (shape)
    keep = Constant <value = bool {1}> ()
    by_row = Constant <value = int64[3] {-1, 1, 1}> ()
    Y = Loop (taps, keep, begin) <
        body = add_line (int64 tap, bool keep_in, $type[p, q, r] sum_in) => (bool keep_out, $type[p, q, r] sum_out) {
            row = Gather <axis = 0> (rows, tap)
            weight_1 = Gather <axis = 0> (weights, tap)
            weight = Reshape (weight_1, by_row)
            taken = Gather <axis = 0> (X, row)
            level = Cast <to = $to> (taken)
            product = Mul (level, weight)
            sum_out = Add (sum_in, product)
            keep_out = Identity (keep_in)
        }
    >
}
""")

_AREA_ANY = """
OpenCVAreaAny (X, height_width, wanted) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    columns, column_weights = samegraph.OpenCVAreaTaps (width_in, width)
    turned = Transpose <perm = [1, 2, 0]> (X)
    wide = samegraph.OpenCVAddLines_float (turned, columns, column_weights, wanted)
    lines = Transpose <perm = [2, 0, 1]> (wide)
    rows, row_weights = samegraph.OpenCVAreaTaps (height_in, height)
    sums = samegraph.OpenCVAddLines_float (lines, rows, row_weights, wanted)
    black = Constant <value = float {0}> ()
    white = Constant <value = float {255}> ()
    rounded = Round (sums)
    level = Clip (rounded, black, white)
    Y = Cast <to = 2> (level)
}
"""

# (n_in, n_out: int64 [1]) → rows: int64 [k, n_out], the k pixels that make one; weights: ones
_AREA_BLOCKS = """
OpenCVAreaBlocks (n_in, n_out) => (rows, weights) {
    k = Div (n_in, n_out)
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    scalar = Constant <value = int64[0] {}> ()
    n = Reshape (n_out, scalar)
    k_scalar = Reshape (k, scalar)
    index = Range (zero, n, one)
    start = Mul (index, k)
    step_1 = Range (zero, k_scalar, one)
    axis = Constant <value = int64[1] {1}> ()
    step = Unsqueeze (step_1, axis)
    rows = Add (start, step)
    shape = Shape (rows)
    weights = ConstantOfShape <value = int32[1] {1}> (shape)
}
"""

_AREA_WHOLE = """
OpenCVAreaWhole (X, height_width, wanted) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    columns, column_weights = samegraph.OpenCVAreaBlocks (width_in, width)
    turned = Transpose <perm = [1, 2, 0]> (X)
    wide = samegraph.OpenCVAddLines_int32 (turned, columns, column_weights, wanted)
    lines = Transpose <perm = [2, 0, 1]> (wide)
    rows, row_weights = samegraph.OpenCVAreaBlocks (height_in, height)
    sums = samegraph.OpenCVAddLines_int32 (lines, rows, row_weights, wanted)
    k_height = Div (height_in, height)
    k_width = Div (width_in, width)
    # Half of both sides: (sum + 2) >> 2. Else sum × (1 / pixels) in float32, half to even.
    two_i = Constant <value = int32 {2}> ()
    two = Constant <value = uint32 {2}> ()
    sums_2 = Add (sums, two_i)
    bits = Cast <to = 12> (sums_2)
    quarter_bits = BitShift <direction = "RIGHT"> (bits, two)
    quarter = Cast <to = 2> (quarter_bits)
    pixels_1 = Mul (k_height, k_width)
    one_pixel = Constant <value = int64[1] {1}> ()
    pixels = Max (pixels_1, one_pixel)
    pixels_float = Cast <to = 1> (pixels)
    one = Div (pixels_float, pixels_float)
    part = Div (one, pixels_float)
    sums_float = Cast <to = 1> (sums)
    mean = Mul (sums_float, part)
    rounded = Round (mean)
    black = Constant <value = float {0}> ()
    white = Constant <value = float {255}> ()
    clipped = Clip (rounded, black, white)
    level = Cast <to = 2> (clipped)
    i2 = Constant <value = int64[1] {2}> ()
    half_height = Equal (k_height, i2)
    half_width = Equal (k_width, i2)
    is_half = And (half_height, half_width)
    Y = Where (is_half, quarter, level)
}
"""

_AREA = """
OpenCVWeighted_area (X, height_width) => (Y) {
    size_in = Shape <start = 0, end = 2> (X)
    sides_in = Cast <to = 11> (size_in)
    sides = Cast <to = 11> (height_width)
    inverse = Div (sides, sides_in)
    one_2 = Div (sides_in, sides_in)
    scale = Div (one_2, inverse)
    one = Constant <value = double {1}> ()
    smallest = ReduceMin <keepdims = 0> (scale)
    shrinks = GreaterOrEqual (smallest, one)
    whole = Round (scale)
    off = Sub (scale, whole)
    off_by = Abs (off)
    farthest = ReduceMax <keepdims = 0> (off_by)
    epsilon = Constant <value = double {2.220446049250313e-16}> ()
    is_whole = Less (farthest, epsilon)
    in_parts = Not (is_whole)
    wants_whole = And (shrinks, is_whole)
    wants_parts = And (shrinks, in_parts)
    by_one = Constant <value = int64[1] {1}> ()
    whole_1 = Cast <to = 7> (wants_whole)
    parts_1 = Cast <to = 7> (wants_parts)
    whole_wanted = Reshape (whole_1, by_one)
    parts_wanted = Reshape (parts_1, by_one)
    of_blocks = samegraph.OpenCVAreaWhole (X, height_width, whole_wanted)
    of_parts = samegraph.OpenCVAreaAny (X, height_width, parts_wanted)
    shrunk = Where (is_whole, of_blocks, of_parts)
    Y = If (shrinks) <
        then_branch = shrink () => (smaller) { smaller = Identity (shrunk) },
        else_branch = grow () => (grown) { grown = samegraph.OpenCVWeighted_area_up (X, height_width) }
    >
}
"""

# (n_in, n_out: int64 [1]) → the first and the second of every two pixels, int64 [n_out] each; valid places for other sizes too
_PAIRS = """
OpenCVPairs (n_in, n_out) => (even, odd) {
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    scalar = Constant <value = int64[0] {}> ()
    n = Reshape (n_out, scalar)
    index = Range (zero, n, one)
    last = Sub (n_in, one)
    even_1 = Mul (index, two)
    odd_1 = Add (even_1, one)
    even = Min (even_1, last)
    odd = Min (odd_1, last)
}
"""

# Half of both sides: four pixels, (sum + 2) >> 2
_HALF = """
OpenCVHalf (X, height_width) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    even_rows, odd_rows = samegraph.OpenCVPairs (height_in, height)
    even_columns, odd_columns = samegraph.OpenCVPairs (width_in, width)
    even_lines = Gather <axis = 0> (X, even_rows)
    odd_lines = Gather <axis = 0> (X, odd_rows)
    p0 = Gather <axis = 1> (even_lines, even_columns)
    p1 = Gather <axis = 1> (even_lines, odd_columns)
    p2 = Gather <axis = 1> (odd_lines, even_columns)
    p3 = Gather <axis = 1> (odd_lines, odd_columns)
    l0 = Cast <to = 12> (p0)
    l1 = Cast <to = 12> (p1)
    l2 = Cast <to = 12> (p2)
    l3 = Cast <to = 12> (p3)
    s1 = Add (l0, l1)
    s2 = Add (l2, l3)
    sum = Add (s1, s2)
    half = Constant <value = uint32 {2}> ()
    rounded = Add (sum, half)
    level = BitShift <direction = "RIGHT"> (rounded, half)
    Y = Cast <to = 2> (level)
}
"""

_LINEAR_OR_HALF = """
OpenCVLinearOrHalf (X, height_width) => (Y) {
    size_in = Shape <start = 0, end = 2> (X)
    two = Constant <value = int64[1] {2}> ()
    twice = Mul (height_width, two)
    missing = Sub (size_in, twice)
    distance = Abs (missing)
    farthest = ReduceMax <keepdims = 0> (distance)
    zero = Constant <value = int64 {0}> ()
    is_half = Equal (farthest, zero)
    Y = If (is_half) <
        then_branch = halve () => (halved) { halved = samegraph.OpenCVHalf (X, height_width) },
        else_branch = weigh () => (weighed) { weighed = samegraph.OpenCVWeighted_linear (X, height_width) }
    >
}
"""

_NEAREST = """
OpenCVNearestRows (n_in, n_out) => (rows) {
    scale, index = samegraph.OpenCVScale (n_in, n_out)
    place = Mul (index, scale)
    floor = Floor (place)
    row = Cast <to = 7> (floor)
    one = Constant <value = int64[1] {1}> ()
    last = Sub (n_in, one)
    rows = Min (row, last)
}
"""

_NEAREST_WHOLE = """
OpenCVWeighted_nearest (X, height_width) => (Y) {
    height, width = Split <axis = 0, num_outputs = 2> (height_width)
    height_in = Shape <start = 0, end = 1> (X)
    width_in = Shape <start = 1, end = 2> (X)
    rows = samegraph.OpenCVNearestRows (height_in, height)
    columns = samegraph.OpenCVNearestRows (width_in, width)
    lines = Gather <axis = 0> (X, rows)
    # Whole rows are copied so much faster than pixels of three bytes that two transposes more pay.
    upright = Transpose <perm = [1, 2, 0]> (lines)
    taken = Gather <axis = 0> (upright, columns)
    Y = Transpose <perm = [2, 0, 1]> (taken)
}
"""

# ---------------------------------------------------------------- what graphs call

# X: uint8 [H, W, C], height_width: int64 [2] → uint8 [height, width, C]; X itself when it has that size
_RESIZE_TO = Template("""
OpenCVResizeTo_$kind (X, height_width) => (Y) {
    size_in = Shape <start = 0, end = 2> (X)
    missing = Sub (size_in, height_width)
    distance = Abs (missing)
    farthest = ReduceMax <keepdims = 0> (distance)
    zero = Constant <value = int64 {0}> ()
    same = Equal (farthest, zero)
    Y = If (same) <
        then_branch = keep () => (kept) { kept = Identity (X) },
        else_branch = change () => (changed) { changed = samegraph.$function (X, height_width) }
    >
}
""")

# `area` by one is a copy anyway.
_RESIZE_TO_AREA = """
OpenCVResizeTo_area (X, height_width) => (Y) {
    Y = samegraph.OpenCVWeighted_area (X, height_width)
}
"""

_RESIZE = Template("""
OpenCVResize_$kind <size$required> (X) => (Y) {
    height_width = Constant <value_ints: ints = @size> ()
    Y = samegraph.OpenCVResizeTo_$kind (X, height_width)
}
""")

_RESIZE_BY = Template("""
OpenCVResizeBy_${rule}_$kind <size, multiple$required> (X) => (Y) {
    wanted = Constant <value_ints: ints = @size> ()
    k = Constant <value_ints: ints = @multiple> ()
    size_in = Shape <start = 0, end = 2> (X)
    height_width = samegraph.OpenCVSizeBy_$rule (size_in, wanted, k)
    Y = samegraph.OpenCVResizeTo_$kind (X, height_width)
}
""")

_SIZE_BY = Template("""
OpenCVSizeBy_$rule (size_in, size, multiple) => (height_width) {
    k = Cast <to = 11> (multiple)
    one = Constant <value = double {1}> ()
    sides_in = Cast <to = 11> (size_in)
    wanted = Cast <to = 11> (size)
$exact
    in_multiples = Div (exact, k)
$rounded
    at_least_one = Max (whole, one)
    sides = Mul (at_least_one, k)
    height_width = Cast <to = 7> (sides)
}
""")

_SIZE_PRODUCT: Final = """
    product = Mul (sides_in, wanted)
    reference = {reduce} <keepdims = 1> (sides_in)
    exact = Div (product, reference)
"""
_SIZE_RATIO: Final = """
    reference = {reduce} <keepdims = 1> (sides_in)
    ratio = Div (wanted, reference)
    exact = Mul (sides_in, ratio)
"""
_SIZE_EXACT: Final[dict[CvSizeBy, str]] = {
    "shorter": _SIZE_PRODUCT.format(reduce="ReduceMin"),
    "longer": _SIZE_PRODUCT.format(reduce="ReduceMax"),
    "shorter_ratio": _SIZE_RATIO.format(reduce="ReduceMin"),
    "longer_ratio": _SIZE_RATIO.format(reduce="ReduceMax"),
    "inside": """
    ratios = Div (wanted, sides_in)
    ratio = ReduceMin <keepdims = 1> (ratios)
    exact = Mul (sides_in, ratio)
""",
}
_SIZE_ROUNDED: Final[dict[CvRounding, str]] = {
    "int": "    whole = Floor (in_multiples)",
    "round": "    whole = Round (in_multiples)",
    "ceil": "    whole = Ceil (in_multiples)",
    "half_up": """
    half = Constant <value = double {0.5}> ()
    raised = Add (in_multiples, half)
    whole = Floor (raised)
""",
}

_REVERSE_CHANNELS = """
ReverseChannels (X) => (Y) {
    start = Constant <value = int64[1] {-1}> ()
    stop = Constant <value = int64[1] {-9223372036854775807}> ()
    step = Constant <value = int64[1] {-1}> ()
    axis = Constant <value = int64[1] {2}> ()
    Y = Slice (X, start, stop, axis, step)
}
"""


def texts() -> list[str]:
    """Return the text of every function of this module."""
    found = [_SCALE, _PLACE, _PLACES, _AREA_PLACES, _LANCZOS_WEIGHTS, _ROUNDED, _FIXED, _NEIGHBOURS, _SHARES, _ACROSS]
    found += [_LINEAR_DOWN, _LINEAR_RIGHT, _AREA_DOWN, _AREA_RIGHT]
    found += [_AREA_TAPS, _AREA_ANY, _AREA_BLOCKS, _AREA_WHOLE, _AREA, _PAIRS, _HALF, _LINEAR_OR_HALF]
    found += [_NEAREST, _NEAREST_WHOLE, _CUBIC_IPP_WHOLE, _REVERSE_CHANNELS]
    found.append(_CUBIC_WEIGHTS.substitute(name="cubic", type=1, float="float"))
    found.append(_CUBIC_WEIGHTS.substitute(name="cubic_ipp", type=11, float="double"))
    found += [_ROWS.substitute(taps=taps, steps=_steps(taps)) for taps in (4, 8)]
    found.append(_CUBIC_IPP.substitute(last=3, sum=_sum_of_taps(4, "X", "11")))
    found += [_ADD_LINES.substitute(name=name, type=name, to=to) for name, to in (("float", 1), ("int32", 6))]
    found += [_TWO_LINES.substitute(name=name) for name in ("linear", "area_up")]
    found += [
        _COLUMNS.substitute(name=name, taps=taps, last=taps - 1, sum=_sum_of_bytes(taps)) for name, taps in (("cubic", 4), ("lanczos4", 8))
    ]
    found.append(_CUBIC_LINES.substitute(integers=Template(_INTEGER_SUM).substitute(last=3)))
    found.append(_LANCZOS_LINES.substitute(sum=_sum_of_taps(8, "columns", "6"), integers=Template(_INTEGER_SUM).substitute(last=7)))
    for by, rounding in itertools.product(CV_SIZES_BY, CV_ROUNDINGS):
        found.append(_SIZE_BY.substitute(rule=f"{by}_{rounding}", exact=_SIZE_EXACT[by], rounded=_SIZE_ROUNDED[rounding]))
    for kind in CV_KINDS:
        required = ", digest, bound" if kind == "cubic_ipp" else ""
        function = "OpenCVLinearOrHalf" if kind == "linear" else f"OpenCVWeighted_{kind}"
        found.append(_RESIZE_TO_AREA if kind == "area" else _RESIZE_TO.substitute(kind=kind, function=function))
        found.append(_RESIZE.substitute(kind=kind, required=required))
        found += [_RESIZE_BY.substitute(rule=rule, kind=kind, required=required) for rule in CV_SIZE_RULES]
    return found


def needs_cv2(op_types: Iterable[str]) -> bool:
    """Whether one of these functions is only exact where cv2 itself runs in its place."""
    return any(name.startswith("OpenCVResize") and name.endswith("_cubic_ipp") for name in op_types)
