"""The data of the gym: digits, words and sequences, always the same."""

from __future__ import annotations

import importlib.resources

import numpy as np

from benchmarks.gym._settings import Settings, with_defaults

WORDS = 1000
TOPICS = 4


@with_defaults()
def digits(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Images of 8 x 8 pixels in [0, 1] as rows of 64, and what is asked of them."""
    file = importlib.resources.files("tfdeep._demo") / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        images = arrays["images"].reshape(-1, 64).astype("float32") / 16
        labels = arrays["labels"].astype("int64")
    random = np.random.RandomState(0)
    kept = (labels == 0) | (random.uniform(size=len(labels)) < settings.rare)
    images, labels = images[kept], labels[kept]
    times = -(-settings.rows // len(images))
    order = np.concatenate([random.permutation(len(images)) for _ in range(times)])
    order = order[: settings.rows]
    images, labels = images[order], labels[order]

    wrong = random.uniform(size=len(labels)) < settings.wrong_labels
    labels = np.where(wrong, random.randint(10, size=len(labels)), labels)
    y = {
        "digit": lambda: labels,
        "even": lambda: (labels % 2 == 0).astype("float32")[:, None],
        "ink": lambda: _standardized(images.reshape(-1, 2, 32).sum(axis=2)),
        "pixels": lambda: images,
    }[settings.target]()

    x = images * settings.gain + settings.offset
    if settings.scale_inputs:
        x = _standardized(x)
    x[slice(*settings.bad_rows)] *= settings.bad_gain
    return x.astype("float32"), y


@with_defaults()
def words(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Texts of 30 words of which some betray the topic."""
    random = np.random.RandomState(0)
    y = random.randint(TOPICS, size=settings.rows)
    rank = np.arange(1, WORDS + 1)
    common = random.choice(WORDS, p=1 / rank / (1 / rank).sum(), size=(len(y), 30))
    telling = WORDS - 1 - (y[:, None] * 25 + random.randint(25, size=common.shape))
    x = np.where(random.uniform(size=common.shape) < 0.3, telling, common)
    return x.astype("int32"), y


@with_defaults()
def bags_of_words(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The texts of `words` as counts: nearly all inputs are zero."""
    texts, y = words(rows=settings.rows)
    x = np.zeros((len(texts), WORDS), "float32")
    np.add.at(x, (np.arange(len(texts))[:, None], texts), 1)
    return x, y


@with_defaults()
def recall(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Sequences whose first element has to be remembered until their end."""
    random = np.random.RandomState(0)
    y = random.randint(TOPICS, size=settings.rows)
    x = np.zeros((len(y), settings.sequence, TOPICS), "float32")
    x[np.arange(len(y)), 0, y] = 1
    return x, y


@with_defaults()
def two_numbers(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 64 that hang on two numbers only, as inputs and as targets."""
    random = np.random.RandomState(0)
    mixed = random.normal(size=(settings.rows, 2)) @ random.normal(size=(2, 64))
    x = np.tanh(mixed).astype("float32")
    return x, x


def chance(y: np.ndarray) -> float:
    """The loss of the best output that is the same for all inputs."""
    if y.dtype.kind == "i" or y.shape[1] == 1:
        shares = np.unique(y, return_counts=True)[1] / len(y)
        return float(-(shares * np.log(shares)).sum())
    return float(y.var(axis=0).mean())


def _standardized(x: np.ndarray) -> np.ndarray:
    return ((x - x.mean()) / x.std()).astype("float32")
