"""The effective rank of a product of matrices shrinks with its depth.

    python examples/degenerating_matrices.py --output degenerating_matrices.png

A deep net's Jacobian is a product of matrices. Its effective rank (Roy and Vetterli,
2007) is the exponential of the entropy of its normalized singular values: 100 where
100 directions pass alike, 1 where a single one is left.
"""

from __future__ import annotations

import argparse

import numpy as np

UNITS, DEPTH, SEED = 100, 50, 42
SHOWN = (1, 2, 5, 10, 20, 50)


def effective_rank(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-np.sum(share * np.log(share))))


def jacobians(kind):
    """The Jacobians of `DEPTH` layers, at one standard normal input."""
    rng = np.random.RandomState(SEED)
    x = rng.normal(size=UNITS)
    for _ in range(DEPTH):
        w = rng.normal(size=(UNITS, UNITS)) / np.sqrt(UNITS)
        if kind == "linear":
            yield w
        elif kind == "relu":
            w *= np.sqrt(2)  # He
            z = x @ w
            x = np.maximum(z, 0)
            yield w * (z > 0)
        elif kind == "orthogonal":
            yield np.linalg.qr(w)[0]
        else:  # a residual layer, x + 0.1 w x
            yield np.eye(UNITS) + 0.1 * w


def ranks(kind):
    """The effective rank of the product of the first 1, 2, ... Jacobians."""
    product, found = np.eye(UNITS), []
    for jacobian in jacobians(kind):
        product = product @ jacobian
        found.append(effective_rank(product))
    return np.array(found)


def draw(curves, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (kind, curve), style in zip(
        curves.items(), ("C0-", "C3-", "k--", "C2-"), strict=True
    ):
        axes.loglog(np.arange(1, DEPTH + 1), curve, style, label=kind)
    axes.set_xticks(SHOWN, SHOWN)
    axes.set_yticks(ticks := (2, 5, 10, 20, 50, 100), ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set(
        xlabel="layers in the product",
        ylabel="effective rank (of 100)",
        title="How many directions a product of matrices lets pass",
    )
    axes.legend(loc="lower left")
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    output = parser.parse_args(arguments).output
    kinds = ("linear", "relu", "orthogonal", "residual")
    curves = {kind: ranks(kind) for kind in kinds}
    print("| layers |", " | ".join(str(depth) for depth in SHOWN), "|")
    print("|---" * (len(SHOWN) + 1) + "|")
    for kind, curve in curves.items():
        print(f"| {kind} |", " | ".join(f"{curve[d - 1]:.1f}" for d in SHOWN), "|")
    if output:
        draw(curves, output)
        print(f"figure in {output}")
    return curves


if __name__ == "__main__":
    main()
