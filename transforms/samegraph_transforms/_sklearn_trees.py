"""Fitted decision trees as one ai.onnx.ml `TreeEnsemble` node in double.

Facts this module relies on, each held by a test:
- ONNX Runtime adds the leaves of a target in the order of `tree_roots`, starting from zero, so an initial value written as a
  first tree of one leaf gives the very sum that boosting makes (one intra-op thread).
- A leaf has one target: a forest with k classes is written k times, once per class.
- `onnx.reference` reads membership sets in depth-first order and ends a set at the value 0, so nodes are written depth-first and
  sets never hold 0 (the complement is used, with the branches swapped). ONNX Runtime is faster on such sets too: codes 1 to 64
  become one bit mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from ._sklearn_graph import GraphWriter

_LEQ: Final = 0
_LT: Final = 1
_MEMBER: Final = 6
_SUM: Final = 1


@dataclass(frozen=True)
class Tree:
    """One binary tree; arrays have one element per node, in depth-first order with the true branch first.

    Attributes:
        true: Node that is next when the test holds; -1 at a leaf.
        false: Node that is next when it does not.
        feature: Column tested.
        threshold: The test is `x <= threshold`.
        members: Node → the codes for which its test holds instead (none of them 0).
        missing_true: Whether NaN goes to the true branch.
        value: What a leaf adds, float64.
    """

    true: NDArray[np.int64]
    false: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    missing_true: NDArray[np.bool_]
    value: NDArray[np.float64]
    members: dict[int, list[int]] = field(default_factory=dict)


def constant_tree(value: float) -> Tree:
    """Return the tree of one leaf that always adds `value`."""
    none = np.array([-1], dtype=np.int64)
    return Tree(none, none, np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.bool_), np.array([value], dtype=np.float64))


def from_sklearn_tree(tree: Any, value: NDArray[np.float64]) -> Tree:
    """Read a fitted `sklearn.tree._tree.Tree`, whose nodes are tested against float32 values.

    Args:
        tree: The `tree_` of a decision tree.
        value: What each node would add as a leaf, [node_count].
    """
    missing = np.asarray(getattr(tree, "missing_go_to_left", np.zeros(tree.node_count)), dtype=np.bool_)
    leaf = np.asarray(tree.children_left) == -1
    return Tree(
        true=np.asarray(tree.children_left, dtype=np.int64),
        false=np.asarray(tree.children_right, dtype=np.int64),
        feature=np.where(leaf, 0, tree.feature).astype(np.int64),
        threshold=np.where(leaf, 0.0, tree.threshold),
        missing_true=missing & ~leaf,
        value=np.asarray(value, dtype=np.float64),
    )


def from_histogram_tree(predictor: Any, n_categories: dict[int, int]) -> Tree:
    """Read one tree of a histogram gradient booster.

    Args:
        predictor: A fitted `TreePredictor`.
        n_categories: Feature → number of its categories, coded 0, 1, …; other values never reach a categorical test.
    """
    nodes = predictor.nodes
    order = _depth_first(nodes)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    nodes = nodes[order]
    leaf = nodes["is_leaf"].astype(bool)
    true, false = place[nodes["left"].astype(np.int64)], place[nodes["right"].astype(np.int64)]
    threshold, missing = nodes["num_threshold"].astype(np.float64), nodes["missing_go_to_left"].astype(bool)
    members: dict[int, list[int]] = {}
    swapped = []
    for i in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf):
        left = _bits(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][i]])
        codes, swap, threshold[i] = _membership(left, n_categories[int(nodes["feature_idx"][i])])
        if codes:
            members[int(i)] = codes
        if swap:
            swapped.append(i)
    true[swapped], false[swapped] = false[swapped], true[swapped]
    missing[swapped] = ~missing[swapped]
    none = np.int64(-1)
    tree = Tree(
        true=np.where(leaf, none, true),
        false=np.where(leaf, none, false),
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
        threshold=np.where(leaf, 0.0, threshold),
        missing_true=missing & ~leaf,
        value=nodes["value"].astype(np.float64),
        members=members,
    )
    return depth_first(tree) if swapped else tree


def _depth_first(nodes: Any) -> NDArray[np.int64]:
    order, stack = [], [0]
    while stack:
        i = stack.pop()
        order.append(i)
        if not nodes["is_leaf"][i]:
            stack += [int(nodes["right"][i]), int(nodes["left"][i])]
    return np.array(order, dtype=np.int64)


def depth_first(tree: Tree) -> Tree:
    """Return the same tree with its nodes in depth-first order, the true branch first."""
    order, stack = [], [0]
    while stack:
        i = stack.pop()
        order.append(i)
        if tree.true[i] >= 0:
            stack += [int(tree.false[i]), int(tree.true[i])]
    at = np.array(order, dtype=np.int64)
    place = np.empty(len(at) + 1, dtype=np.int64)
    place[at], place[-1] = np.arange(len(at)), -1  # -1 (a leaf's child) stays -1
    members = {int(place[i]): codes for i, codes in tree.members.items()}
    return Tree(
        place[tree.true[at]], place[tree.false[at]], tree.feature[at], tree.threshold[at], tree.missing_true[at], tree.value[at], members
    )


def _bits(bitset: Any) -> list[int]:
    """Return the codes whose bits are set in eight 32-bit words."""
    words = np.asarray(bitset, dtype="<u4")
    return [int(i) for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))]


def _membership(left: Sequence[int], n_categories: int) -> tuple[list[int], bool, float]:
    """Return the set to test without code 0, whether branches are swapped, and a threshold in its place when the set is empty."""
    if 0 not in left:
        return list(left), False, 0.0 if left else -np.inf
    rest = sorted(set(range(n_categories)) - set(left))
    return (rest, True, 0.0) if rest else ([], False, np.inf)


def search_tree(edges: NDArray[np.float64]) -> Tree:
    """Return the tree that finds a value's place among sorted `edges` by halving: what it adds is a count of edges.

    With the test `x < edge` it counts the edges <= x (`numpy.searchsorted(edges, x, side="right")`), with `x <= edge` those < x
    (`side="left"`). NaN counts them all, as in NumPy.
    """
    different = np.unique(edges)
    counts = np.concatenate([[0], np.searchsorted(edges, different, side="right")])
    nodes: list[tuple[int, int, float, float]] = []

    def grow(low: int, high: int) -> int:
        place = len(nodes)
        if low == high:
            nodes.append((-1, -1, 0.0, float(counts[low])))
            return place
        middle = (low + high) // 2
        nodes.append((0, 0, 0.0, 0.0))
        true, false = grow(low, middle), grow(middle + 1, high)
        nodes[place] = (true, false, float(different[middle]), 0.0)
        return place

    grow(0, len(different))
    true, false, threshold, value = (np.array(part) for part in zip(*nodes, strict=True))
    return Tree(
        true.astype(np.int64), false.astype(np.int64), np.zeros(len(nodes), np.int64), threshold, np.zeros(len(nodes), np.bool_), value
    )


def emit_places(writer: GraphWriter, tensor: str, edges: Sequence[NDArray[np.float64]], *, at: str, side: Literal["left", "right"]) -> str:
    """Write the place of each column's value among its sorted `edges`, as `numpy.searchsorted` gives it: float64 [n, len(edges)]."""
    trees = [[replace(search_tree(e), feature=np.full(max(1, 2 * len(np.unique(e)) + 1), j))] for j, e in enumerate(edges)]
    return emit_trees(writer, tensor, trees, at=at, below=side == "right")


def emit_trees(
    writer: GraphWriter, tensor: str, targets: Sequence[Sequence[Tree]], *, at: str, single: bool = False, below: bool = False
) -> str:
    """Write the sum of trees per target.

    Args:
        writer: The graph.
        tensor: float64 [n, k]; float32 when `single`.
        targets: For each target the trees that add to it, in order.
        at: Pipeline path.
        single: Compare and add in float32, and test `x < threshold`, as XGBoost does.
        below: Test `x < threshold` also in float64.

    Returns:
        float64 [n, len(targets)]; float32 when `single`.
    """
    dtype = np.float32 if single else np.float64
    trees = [(t, tree) for t, of_target in enumerate(targets) for tree in of_target]
    parts = [_entries(t, tree, _LT if single or below else _LEQ) for t, tree in trees]
    node_starts = np.cumsum([0] + [len(p["feature"]) for p in parts])
    leaf_starts = np.cumsum([0] + [len(p["weight"]) for p in parts])

    def joined(key: str) -> NDArray[Any]:
        return np.concatenate([p[key] for p in parts])

    def pointers(branch: str) -> list[int]:
        starts = zip(parts, node_starts, leaf_starts, strict=False)
        return [int(v) for p, n, leaves in starts for v in p[branch] + np.where(p[f"{branch}_leaf"], leaves, n)]

    members = [code for p in parts for code in p["members"]]
    attributes: dict[str, Any] = {
        "tree_roots": [int(n) for n in node_starts[:-1]],
        "nodes_featureids": joined("feature").tolist(),
        "nodes_modes": numpy_helper.from_array(joined("mode").astype(np.uint8), "modes"),
        "nodes_splits": numpy_helper.from_array(joined("threshold").astype(dtype), "splits"),
        "nodes_missing_value_tracks_true": joined("missing").tolist(),
        "nodes_truenodeids": pointers("true"),
        "nodes_falsenodeids": pointers("false"),
        "nodes_trueleafs": joined("true_leaf").astype(int).tolist(),
        "nodes_falseleafs": joined("false_leaf").astype(int).tolist(),
        "leaf_targetids": joined("target").tolist(),
        "leaf_weights": numpy_helper.from_array(joined("weight").astype(dtype), "weights"),
        "n_targets": len(targets),
        "aggregate_function": _SUM,
    }
    if members:
        attributes["membership_values"] = numpy_helper.from_array(np.array(members, dtype=dtype), "members")
    return writer.node("TreeEnsemble", [tensor], at=at, **attributes)


def _entries(target: int, tree: Tree, test: int) -> dict[str, NDArray[Any]]:
    """Split one tree into the operator's inner nodes and leaves, with pointers that start at 0 in each."""
    leaf = tree.true < 0
    if leaf[0]:  # the operator wants an inner node: one whose branches are the same leaf
        zero, one = np.zeros(1, np.int64), np.ones(1, np.bool_)
        single = {
            "feature": zero,
            "mode": zero,
            "threshold": np.zeros(1),
            "missing": zero,
            "members": np.zeros(0),
            "target": np.array([target]),
        }
        return {**single, "true": zero, "false": zero, "true_leaf": one, "false_leaf": one, "weight": tree.value[:1]}
    inner = np.flatnonzero(~leaf)
    place = np.where(leaf, np.cumsum(leaf) - 1, np.cumsum(~leaf) - 1)
    member_nodes = [int(i) for i in inner if int(i) in tree.members] if tree.members else []
    mode = np.full(len(leaf), test)
    mode[member_nodes] = _MEMBER
    members = [v for i in member_nodes for v in (*tree.members[i], np.nan)]
    return {
        "feature": tree.feature[inner],
        "mode": mode[inner],
        "threshold": tree.threshold[inner],
        "missing": tree.missing_true[inner].astype(np.int64),
        "members": np.array(members, dtype=np.float64),
        "true": place[tree.true[inner]],
        "false": place[tree.false[inner]],
        "true_leaf": leaf[tree.true[inner]],
        "false_leaf": leaf[tree.false[inner]],
        "weight": tree.value[leaf],
        "target": np.full(int(leaf.sum()), target, dtype=np.int64),
    }
