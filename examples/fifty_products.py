"""The product of fifty random numbers between 0 and 1, measured and exact.

    python examples/fifty_products.py --output fifty_products.png

A picture of the vanishing gradient: fifty slopes between 0 and 1 are multiplied, and
the product is said never to exceed 1e-18. The logarithm of the product has a known
distribution: -ln(u_1 ... u_50) is the sum of fifty exponential variables, Gamma(50).
"""

from __future__ import annotations

import argparse
import math

import numpy as np

FACTORS, SEED = 50, 42
BOUNDS = (1e-18, 1e-17, 1e-15)


def probability_above(bound, factors=FACTORS):
    """The exact probability that the product exceeds `bound`.

    The distribution function of Gamma(n) at t, for a whole n, is
    1 - exp(-t) * sum(t**k / k! for k < n).
    """
    t = -math.log(bound)
    terms = (math.exp(k * math.log(t) - t - math.lgamma(k + 1)) for k in range(factors))
    return 1 - math.fsum(terms)


def exact_median(factors=FACTORS):
    """The median of the logarithm (base 10) of the product, by bisection."""
    low, high = -3.0 * factors, -1e-9
    for _ in range(100):
        middle = (low + high) / 2
        if probability_above(10**middle, factors) > 0.5:
            low = middle
        else:
            high = middle
    return middle


def measure(count):
    """The logarithms (base 10) of `count` products."""
    rng = np.random.RandomState(SEED)
    return np.log10(1 - rng.uniform(size=(count, FACTORS))).sum(axis=1)


def draw(logarithms, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    edges = np.arange(-40, -6, 0.5)
    axes.hist(logarithms, edges, density=True, color="lightgrey", label="measured")
    x = np.linspace(-40, -8, 400)
    t = -x * math.log(10)
    density = np.exp((FACTORS - 1) * np.log(t) - t - math.lgamma(FACTORS))
    axes.plot(x, density * math.log(10), color="black", label="exact")
    share = f"{probability_above(1e-18):.1%} of the products are above 1e-18"
    axes.axvline(-18, color="tab:red", label=share)
    axes.axvline(
        FACTORS * math.log10(0.25),
        color="tab:blue",
        linestyle="--",
        label="largest product of 50 sigmoid slopes, 0.25^50",
    )
    axes.set(
        xlabel="logarithm (base 10) of the product",
        ylabel="density",
        ylim=(0, 0.215),
        title="Products of fifty numbers between 0 and 1",
    )
    axes.legend(loc="upper center", ncols=2, fontsize=8, framealpha=1)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--count", type=int, default=200_000, help="products to draw")
    options = parser.parse_args(arguments)
    logarithms = measure(options.count)
    measured = {
        bound: float((logarithms > math.log10(bound)).mean()) for bound in BOUNDS
    }
    median, exact = float(np.median(logarithms)), exact_median()
    print(f"| of {options.count} products | measured | exact |")
    print("|---|---|---|")
    print(f"| median | 10^{median:.2f} | 10^{exact:.2f} |")
    print(f"| largest | 10^{logarithms.max():.2f} | 1 |")
    for bound, share in measured.items():
        print(f"| share above {bound:.0e} ", end="")
        print(f"| {share:.4f} | {probability_above(bound):.4f} |")
    print(f"| largest of 50 sigmoid slopes | | {0.25**FACTORS:.3e} |")
    if options.output:
        draw(logarithms, options.output)
        print(f"figure in {options.output}")
    return median, measured


if __name__ == "__main__":
    main()
