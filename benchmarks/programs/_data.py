"""Data for the programs: the digits that ship with tfdeep, and made-up numbers.

Everything comes from fixed seeds. Made-up data has the shape, the range and the
statistics of what the original program read; what it must learn can be learned.
"""

from __future__ import annotations

import importlib.resources

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


def digits(size: int = 8, brightest: float = 1.0) -> Arrays:
    """1797 images of digits, (rows, size, size, 1) in [0, brightest], and 0 to 9.

    Args:
        size: Edge in pixels, a multiple of 8; pixels are repeated.
        brightest: The value of a white pixel.
    """
    file = importlib.resources.files("tfdeep._demo") / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        images = arrays["images"].reshape(-1, 8, 8, 1).astype("float32") / 16
        labels = arrays["labels"].astype("int64")
    images = images.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    return images * np.float32(brightest), labels


def flat_digits(brightest: float = 1.0) -> Arrays:
    """The digits as rows of 64 pixels, and their labels."""
    images, labels = digits(brightest=brightest)
    return images.reshape(-1, 64), labels


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels 0, 1, 2, ... as rows with one 1."""
    return np.eye(classes, dtype="float32")[labels]


def photos(
    classes: int, rows: int = 800, size: int = 16, brightest: float = 1.0
) -> Arrays:
    """Color images of smooth patterns, one pattern a class, under strong noise.

    Returns:
        Images (rows, size, size, 3) in [0, brightest] of mean .46, and labels.
    """
    random = np.random.RandomState(1)
    coarse = random.uniform(size=(classes, size // 4, size // 4, 3))
    patterns = coarse.repeat(4, axis=1).repeat(4, axis=2)
    labels = random.randint(classes, size=rows)
    images = 0.46 + 0.4 * (patterns[labels] - 0.5)
    images = images + 0.15 * random.normal(size=images.shape)
    return (np.clip(images, 0, 1) * brightest).astype("float32"), labels


def table(rows: int, features: int, classes: int = 2, seed: int = 2) -> Arrays:
    """Standardized features, and a class that depends on a curved function of them."""
    random = np.random.RandomState(seed)
    x = random.normal(size=(rows, features)).astype("float32")
    hidden = np.tanh(x @ random.normal(size=(features, 16)) / np.sqrt(features) * 2)
    scores = hidden @ random.normal(size=(16, classes))
    return x, np.argmax(scores - scores.mean(axis=0), axis=1)


def regression(rows: int, features: int, seed: int = 3) -> Arrays:
    """Standardized features, and a standardized smooth target (rows, 1) of them."""
    random = np.random.RandomState(seed)
    x = random.normal(size=(rows, features)).astype("float32")
    y = np.tanh(x @ random.normal(size=(features, 8)) / np.sqrt(features))
    y = y @ random.normal(size=(8, 1)) + 0.05 * random.normal(size=(rows, 1))
    return x, standardized(y)


def waves(rows: int, length: int, classes: int = 2, seed: int = 4) -> Arrays:
    """Noisy sines (rows, length, 1) of one frequency a class, and labels."""
    random = np.random.RandomState(seed)
    labels = random.randint(classes, size=rows)
    time = np.arange(length)[None, :, None]
    cycles = 3.0 + 3.0 * labels[:, None, None]
    phase = random.uniform(0, 2 * np.pi, size=(rows, 1, 1))
    x = 2 * np.sin(2 * np.pi * cycles * time / length + phase)
    x = x + 0.5 * random.normal(size=x.shape)
    return x.astype("float32"), labels


def blobs(rows: int, classes: int, features: int, seed: int = 5) -> Arrays:
    """Well separated clouds of mean 0, and which one a row is of."""
    random = np.random.RandomState(seed)
    centers = 2.5 * random.normal(size=(classes, features))
    labels = random.randint(classes, size=rows)
    x = centers[labels] + random.normal(size=(rows, features))
    return standardized(x), labels


def iris() -> Arrays:
    """150 flowers with the means and deviations of the iris data, sorted by class."""
    random = np.random.RandomState(6)
    mean = np.array([[5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0]])
    deviation = np.array([0.5, 0.33, 0.4, 0.2])
    labels = np.repeat(np.arange(3), 50)
    x = mean[labels] + deviation * random.normal(size=(150, 4))
    return np.clip(x, 0.1, 7.9).astype("float32"), labels


def standardized(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1."""
    x = np.asarray(x, "float64")
    return ((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)).astype("float32")


def shuffled(x: np.ndarray, y: np.ndarray) -> Arrays:
    """The rows of both in another order, the same for both."""
    order = np.random.RandomState(7).permutation(len(x))
    return x[order], y[order]
