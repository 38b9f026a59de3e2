"""A monitor never harms a fit, whatever layers the model has.

Each public layer class of Keras stands in a small model that is trained twice: plainly,
and under a monitor that looks at all it can. The weights must be the same to the last
bit. A class that a new version of Keras adds fails here until it is given arguments.
"""

import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep.callbacks import GradientMonitor

FLAT, SEQUENCE, IMAGE, VOLUME = (5,), (6, 4), (8, 8, 3), (4, 4, 4, 2)
EXAMPLES, BATCH = 12, 4


def twice(kind, *args, **kwargs):
    """A layer that takes two inputs, here one and the same."""
    layer = kind(*args, **kwargs)
    return lambda x: layer([x, layers.Rescaling(2.0)(x)])


def cell(kind):
    return layers.RNN(kind(3))


def attention():
    layer = layers.MultiHeadAttention(2, 3)
    return lambda x: layer(x, x)


def grouped_attention():
    layer = layers.GroupQueryAttention(3, 2, 1)
    return lambda x: layer(x, x)


def adapted(layer, data):
    layer.adapt(data)
    return layer


def pair_of_integers(layer):
    return lambda x: layer([x[:, :1], x[:, 1:2]])


# By the rank of the images, sequences or volumes that they take.
BY_RANK = {
    "AdaptiveAveragePooling": (2,),
    "AdaptiveMaxPooling": (2,),
    "AveragePooling": (2,),
    "Conv": (3, 2),
    "Cropping": (1,),
    "GlobalAveragePooling": (),
    "GlobalMaxPooling": (),
    "MaxPooling": (2,),
    "SpatialDropout": (0.3,),
    "UpSampling": (2,),
    "ZeroPadding": (1,),
}
SHAPES = {1: SEQUENCE, 2: IMAGE, 3: VOLUME}

INTEGERS, STRINGS = "int32", "string"

# How a class is made and called, and what it takes.
LAYERS = {
    f"{name}{rank}D": (lambda kind, args=args: kind(*args), shape)
    for name, args in BY_RANK.items()
    for rank, shape in SHAPES.items()
}
LAYERS |= {
    f"Conv{rank}DTranspose": (lambda kind: kind(3, 2), shape)
    for rank, shape in SHAPES.items()
}
LAYERS |= {
    f"{name}Conv{rank}D": (lambda kind, args=args: kind(*args), SHAPES[rank])
    for name, args in {"Separable": (3, 2), "Depthwise": (2,)}.items()
    for rank in (1, 2)
}
LAYERS |= {
    f"ConvLSTM{rank}D": (lambda kind: kind(2, 2), shape)
    for rank, shape in {1: (3, 5, 2), 2: (3, 5, 5, 2), 3: (2, 3, 3, 3, 2)}.items()
}
LAYERS |= {
    name: (twice, SEQUENCE)
    for name in (
        *("Add", "AdditiveAttention", "Attention", "Average", "Concatenate"),
        *("Maximum", "Minimum", "Multiply", "Subtract"),
    )
}
# Of these, images that are called "training" are changed at random.
LAYERS |= {
    name: (lambda kind, args=args: kind(**args), IMAGE)
    for name, args in {
        "AugMix": {"value_range": (0, 1)},
        "AutoContrast": {"value_range": (0, 1)},
        "CenterCrop": {"height": 4, "width": 4},
        "ContrastLimitedAdaptiveHistogramEqualization": {
            "value_range": (0, 1),
            "tile_grid_size": (2, 2),
        },
        "RandAugment": {"value_range": (0, 1)},
        "RandomBrightness": {"factor": 0.2, "value_range": (0, 1)},
        "RandomColorDegeneration": {"factor": 0.5, "value_range": (0, 1)},
        "RandomColorJitter": {"brightness_factor": 0.2, "value_range": (0, 1)},
        "RandomContrast": {"factor": 0.2, "value_range": (0, 1)},
        "RandomCrop": {"height": 4, "width": 4},
        "RandomElasticTransform": {"factor": 1.0, "value_range": (0, 1)},
        "RandomErasing": {"factor": 1.0, "value_range": (0, 1)},
        "RandomFlip": {},
        "RandomGaussianBlur": {"factor": 1.0, "value_range": (0, 1)},
        "RandomGrayscale": {},
        "RandomHue": {"factor": 0.2, "value_range": (0, 1)},
        "RandomInvert": {"factor": 0.5, "value_range": (0, 1)},
        "RandomPerspective": {},
        "RandomPosterization": {"factor": 4, "value_range": (0, 1)},
        "RandomRotation": {"factor": 0.1},
        "RandomSaturation": {"factor": 0.5, "value_range": (0, 1)},
        "RandomSharpness": {"factor": 0.5, "value_range": (0, 1)},
        "RandomShear": {"x_factor": 0.2, "y_factor": 0.2},
        "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
        "RandomZoom": {"height_factor": 0.2},
        "Resizing": {"height": 4, "width": 4},
        "Solarization": {"value_range": (0, 1)},
    }.items()
}
LAYERS |= {
    name: (lambda kind, args=args: kind(*args), SEQUENCE)
    for name, args in {
        "Activation": ("tanh",),
        "ActivityRegularization": (0.01,),
        "AlphaDropout": (0.3,),
        "BatchNormalization": (),
        "Dense": (3, "relu"),
        "Dropout": (0.3,),
        "ELU": (),
        "Flatten": (),
        "GRU": (3,),
        "GaussianDropout": (0.3,),
        "GaussianNoise": (0.3,),
        "GroupNormalization": (2,),
        "Identity": (),
        "LSTM": (3,),
        "LayerNormalization": (),
        "LeakyReLU": (),
        "Masking": (),
        "PReLU": (),
        "Permute": ((2, 1),),
        "RMSNormalization": (),
        "ReLU": (),
        "Rescaling": (2.0,),
        "Reshape": ((3, 8),),
        "SimpleRNN": (3,),
        "Softmax": (),
        "UnitNormalization": (),
    }.items()
}
LAYERS |= {
    "Bidirectional": (lambda kind: kind(layers.LSTM(3)), SEQUENCE),
    "CategoryEncoding": (lambda kind: kind(7), FLAT, INTEGERS),
    "Discretization": (lambda kind: kind([0.0, 1.0]), FLAT),
    "Dot": (lambda kind: twice(kind, axes=2), SEQUENCE),
    "EinsumDense": (lambda kind: kind("abc,cd->abd", (6, 3)), SEQUENCE),
    "Embedding": (lambda kind: kind(7, 3), FLAT, INTEGERS),
    # By itself its output is its input, of which Keras makes no graph.
    "Equalization": (lambda kind: Wrapped(kind((0, 1))), IMAGE),
    "GRUCell": (cell, SEQUENCE),
    "GroupQueryAttention": (lambda kind: grouped_attention(), SEQUENCE),
    "HashedCrossing": (
        lambda kind: pair_of_integers(kind(5, output_mode="one_hot")),
        FLAT,
        INTEGERS,
    ),
    "Hashing": (lambda kind: kind(5), FLAT, INTEGERS),
    "IntegerLookup": (lambda kind: kind(vocabulary=[0, 1, 2]), FLAT, INTEGERS),
    "LSTMCell": (cell, SEQUENCE),
    "Lambda": (lambda kind: kind(lambda x: x * 2), SEQUENCE),
    "MelSpectrogram": (
        lambda kind: kind(num_mel_bins=4, fft_length=16, sequence_stride=8),
        (64,),
    ),
    "MultiHeadAttention": (lambda kind: attention(), SEQUENCE),
    "Normalization": (lambda kind: adapted(kind(), np.eye(4)), SEQUENCE),
    "Pipeline": (lambda kind: kind([layers.Rescaling(2.0)]), SEQUENCE),
    "RNN": (lambda kind: kind([layers.GRUCell(3), layers.LSTMCell(3)]), SEQUENCE),
    "RepeatVector": (lambda kind: kind(2), FLAT),
    "ReversibleEmbedding": (lambda kind: kind(7, 3), FLAT, INTEGERS),
    "STFTSpectrogram": (
        lambda kind: kind(frame_length=16, frame_step=8, fft_length=16, window=None),
        (64, 1),
    ),
    "SimpleRNNCell": (cell, SEQUENCE),
    "SpectralNormalization": (lambda kind: kind(layers.Dense(3)), SEQUENCE),
    "StackedRNNCells": (
        lambda kind: layers.RNN(kind([layers.GRUCell(3), layers.GRUCell(3)])),
        SEQUENCE,
    ),
    "TimeDistributed": (lambda kind: kind(layers.Dense(3)), SEQUENCE),
    "Wrapper": (lambda kind: Wrapped(layers.Dense(3)), SEQUENCE),
    "Layer": (lambda kind: Own(), SEQUENCE),
}

# Why a class cannot stand in a model that trains here.
ELSEWHERE = {
    "FlaxLayer": "another backend",
    "JaxLayer": "another backend",
    "TorchModuleWrapper": "another backend",
    "TFSMLayer": "runs a saved model, without gradients",
    "InputLayer": "stands in every model",
    "CutMix": "changes images and labels in the dataset",
    "MaxNumBoundingBoxes": "changes bounding boxes in the dataset",
    "MixUp": "changes images and labels in the dataset",
    "StringLookup": "takes text: see test_every_input.py",
    "TextVectorization": "takes text: see test_every_input.py",
}


class Wrapped(layers.Wrapper):
    def call(self, x):
        return self.layer(x)


class Own(layers.Layer):
    """Gives back what no layer of Keras does."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return {"other": (tf.shape(x), x), "scaled": x * self.scale}

    def compute_output_spec(self, x):
        first, second = (keras.KerasTensor(x.shape, x.dtype) for _ in range(2))
        return {"other": (keras.KerasTensor((3,), "int32"), first), "scaled": second}


CLASSES = {
    name: kind
    for name, kind in vars(layers).items()
    if inspect.isclass(kind) and issubclass(kind, layers.Layer)
}


@pytest.fixture(autouse=True)
def nothing_is_fused():
    """TensorFlow fuses operations unless someone looks between: one rounding less."""
    tf.config.optimizer.set_experimental_options({"remapping": False})
    yield
    tf.config.optimizer.set_experimental_options({"remapping": True})


def branch(name, inputs):
    make, shape, dtype = described(name)
    x = inputs
    if dtype == "float32":
        x = layers.Dense(shape[-1], name=f"before_{name}")(x)
    x = make(getattr(layers, name))(x)
    x = x["scaled"] if isinstance(x, dict) else x
    return layers.Flatten()(layers.Rescaling(1.0)(x))


def described(name):
    return (*LAYERS[name], "float32")[:3]


def build(names):
    """A model in which layers that take the same stand beside one another."""
    keras.utils.set_random_seed(1)
    keras.utils.clear_session(free_memory=False)
    _, shape, dtype = described(names[0])
    inputs = keras.Input(shape, dtype=dtype)
    outputs = [layers.Dense(2)(branch(name, inputs)) for name in names]
    total = layers.Add()(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(inputs, layers.Dense(2, name="outputs")(total))


def fitted(names, *callbacks, **arguments):
    model = build(names)
    rng = np.random.default_rng(0)
    shape = (EXAMPLES, *model.input_shape[1:])
    x = rng.random(shape).astype("float32")
    if model.inputs[0].dtype == INTEGERS:
        x = rng.integers(0, 3, shape)
    model.compile("adam", "mse", **arguments)
    nets.traced_once(model)
    keras.utils.set_random_seed(2)
    model.fit(
        x,
        rng.random((EXAMPLES, 2)),
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
    )
    return nets.values(model)


def check(names, **arguments):
    plain = fitted(names, **arguments)
    monitor = GradientMonitor(activations=True, on_finding=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`GradientMonitor` cannot")
        watched = fitted(names, monitor, **arguments)
    assert list(watched) == list(plain)
    for path, value in plain.items():
        np.testing.assert_array_equal(watched[path], value, err_msg=path)
    assert monitor.recording.total_steps == EXAMPLES // BATCH
    assert np.isfinite(monitor.recording["loss"]).all()
    assert (monitor.history["outputs/kernel"]["norm"] > 0).all()
    column = [layer.path for layer in monitor.recording.layers].index("outputs")
    assert (monitor.recording["output_std"][:, column] > 0).all()


def test_every_class_is_tried():
    tried = {CLASSES.get(name) for name in (*LAYERS, *ELSEWHERE)}
    missing = [name for name, kind in CLASSES.items() if kind not in tried]
    assert missing == [], "give them arguments in LAYERS"


# Layers that take the same inputs.
GROUPS = {}
for name in sorted(LAYERS.keys() & CLASSES.keys()):  # an older Keras has fewer
    GROUPS.setdefault(str(described(name)[1:]), []).append(name)


@pytest.mark.parametrize(
    ("group", "run_eagerly"),
    nets.slow_unless(
        lambda group, run_eagerly: run_eagerly or len(GROUPS[group]) < 12,
        sorted(GROUPS),
        [True, False],
    ),
)
def test_training_is_the_same_with_many_layers(group, run_eagerly):
    check(GROUPS[group], run_eagerly=run_eagerly)


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [True, False], ids=["eager", "traced"])
@pytest.mark.parametrize("name", sorted(LAYERS.keys() & CLASSES.keys()))
def test_training_is_the_same_with_one(name, run_eagerly):
    check([name], run_eagerly=run_eagerly)
