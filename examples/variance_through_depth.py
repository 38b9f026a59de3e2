"""The variance of signals and gradients through ten layers, by initialization.

    python examples/variance_through_depth.py --output variance_through_depth.png

500 standard normal inputs pass ten layers of 100 units; then a standard normal
gradient passes them backward. An initialization is to keep both variances as they
are (Glorot and Bengio, 2010, https://proceedings.mlr.press/v9/glorot10a.html).
"""

from __future__ import annotations

import argparse

import numpy as np

INPUTS, UNITS, DEPTH, SEED = 500, 100, 10, 42
# The standard deviation of the weights, by the number of units.
INITIALIZATIONS = {
    "N(0, 1)": lambda units: 1.0,
    "Glorot": lambda units: np.sqrt(2 / (units + units)),
    "He": lambda units: np.sqrt(2 / units),
}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# Each activation and its derivative.
ACTIVATIONS = {
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
}


def propagate(activation, initialization, units=UNITS):
    """Variance of pre-activations, of activations and of gradients, by layer.

    The gradient is that with respect to the pre-activations.
    """
    function, derivative = ACTIVATIONS[activation]
    scale = INITIALIZATIONS[initialization](units)
    rng = np.random.RandomState(SEED)
    a = rng.normal(size=(INPUTS, units))
    kernels, z, forward, outputs = [], [], [], []
    for _ in range(DEPTH):
        kernels.append(scale * rng.normal(size=(units, units)))
        z.append(a @ kernels[-1])
        a = function(z[-1])
        forward.append(z[-1].var())
        outputs.append(a.var())
    gradient, backward = rng.normal(size=a.shape), []
    for kernel, pre_activation in zip(reversed(kernels), reversed(z), strict=True):
        gradient = gradient * derivative(pre_activation)
        backward.append(gradient.var())
        gradient = gradient @ kernel.T
    return np.array(forward), np.array(outputs), np.array(backward[::-1])


def draw(results, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        3, 2, figsize=(8, 7), sharex=True, layout="constrained"
    )
    layer = np.arange(1, DEPTH + 1)
    for row, activation in zip(panels, ACTIVATIONS, strict=True):
        for name, marker in zip(INITIALIZATIONS, "o^s", strict=True):
            forward, _, backward = results[activation, name]
            row[0].semilogy(layer, forward, marker=marker, markersize=4, label=name)
            row[1].semilogy(layer, backward, marker=marker, markersize=4, label=name)
        row[0].set(ylabel=f"{activation}: variance")
        for axes in row:
            axes.grid(alpha=0.3)
    panels[0, 0].set(title="forward: variance of the pre-activations")
    panels[0, 1].set(title="backward: variance of the gradients")
    panels[0, 0].legend()
    for axes in panels[-1]:
        axes.set(xlabel="layer", xticks=layer)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--units", type=int, default=UNITS, help="of each layer")
    options = parser.parse_args(arguments)
    results = {
        (activation, name): propagate(activation, name, options.units)
        for activation in ACTIVATIONS
        for name in INITIALIZATIONS
    }
    print("| activation | initialization | forward, layers 1 / 2 / 5 / 10 ", end="")
    print("| largest output variance | backward, layers 10 / 5 / 1 ", end="")
    print("| gradient scale, layer 1 over 10 |")
    print("|---|---|---|---|---|---|")
    for (activation, name), (forward, outputs, backward) in results.items():
        ahead = " / ".join(f"{forward[i - 1]:.3g}" for i in (1, 2, 5, 10))
        back = " / ".join(f"{backward[i - 1]:.2g}" for i in (10, 5, 1))
        ratio = np.sqrt(backward[0] / backward[-1])
        print(f"| {activation} | {name} | {ahead} | {outputs.max():.2g} ", end="")
        print(f"| {back} | {ratio:.2g} |")
    if options.output:
        draw(results, options.output)
        print(f"figure in {options.output}")
    return results


if __name__ == "__main__":
    main()
