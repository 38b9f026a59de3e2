"""What functions of tensorflow-addons 0.23 give for the inputs of the guide.

Run it where `list_symbols.py` runs:

    python make_values.py values.npz
"""

import sys

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

x = np.linspace(-3, 3, 12, dtype="float32").reshape(3, 4)
image = np.float32(np.arange(126) * 7 % 17 / 17).reshape(1, 6, 7, 3)
ids = np.array([[1, 2, 0], [3, 1, 2]])
y_true = np.float32([[1, 0, 1], [0, 0, 1], [1, 1, 0]])
y_pred = np.float32([[0.9, 0.3, 0.4], [0.2, 0.6, 0.8], [0.7, 0.6, 0.1]])
distance = np.float32([0.2, 1.4, 0.7])


def result(metric, *values):
    metric.update_state(*values)
    return metric.result()


def sequence_loss():
    loss = tfa.seq2seq.SequenceLoss(
        average_across_timesteps=True,
        average_across_batch=True,
        sum_over_timesteps=False,
        sum_over_batch=False,
    )
    return loss(ids % 3, image[0, :2, :3], np.ones((2, 3), "float32"))


def values():
    a, m, s = tfa.activations, tfa.metrics, tfa.seq2seq
    layers, losses, images = tfa.layers, tfa.losses, tfa.image
    yield "activations.gelu", a.gelu(x)
    yield "activations.hardshrink", a.hardshrink(x)
    yield "activations.lisht", a.lisht(x)
    yield "activations.mish", a.mish(x)
    yield "activations.rrelu", a.rrelu(x, training=False)
    yield "activations.snake", a.snake(x, 1.0)
    yield "activations.softshrink", a.softshrink(x)
    yield "activations.sparsemax", a.sparsemax(x)
    yield "activations.tanhshrink", a.tanhshrink(x)
    for kind in ("Average", "Max"):
        pool = f"Adaptive{kind}Pooling"
        yield f"layers.{pool}1D", getattr(layers, pool + "1D")(3)(image[:, :, 0])
        yield f"layers.{pool}2D", getattr(layers, pool + "2D")((3, 7))(image)
        deep = image[..., None]
        yield f"layers.{pool}3D", getattr(layers, pool + "3D")((3, 7, 3))(deep)
    yield "layers.GELU", layers.GELU()(x)
    yield "layers.GroupNormalization", layers.GroupNormalization(3)(image)
    yield "layers.InstanceNormalization", layers.InstanceNormalization()(image)
    yield "layers.Maxout", layers.Maxout(2)(x)
    yield "layers.PoincareNormalize", layers.PoincareNormalize()(x)
    yield "layers.Snake", layers.Snake()(x)
    yield "layers.Sparsemax", layers.Sparsemax()(x)
    depth = layers.StochasticDepth(0.8)
    yield "layers.StochasticDepth", depth([x, 2 * x], training=False)
    yield "layers.TLU", layers.TLU()(x)
    contrastive = losses.contrastive_loss(y_true[:, 0], distance)
    yield "losses.contrastive_loss", contrastive
    yield "losses.ContrastiveLoss", losses.ContrastiveLoss()(y_true[:, 0], distance)
    yield "losses.pinball_loss", losses.pinball_loss(y_true, y_pred)
    focal = losses.sigmoid_focal_crossentropy(y_true, y_pred)
    yield "losses.sigmoid_focal_crossentropy", focal
    focal = losses.SigmoidFocalCrossEntropy()(y_true, y_pred)
    yield "losses.SigmoidFocalCrossEntropy", focal
    yield "metrics.F1Score", result(m.F1Score(3, threshold=0.5), y_true, y_pred)
    fbeta = m.FBetaScore(3, beta=2.0, threshold=0.5)
    yield "metrics.FBetaScore", result(fbeta, y_true, y_pred)
    yield "metrics.GeometricMean", result(m.GeometricMean(), distance)
    yield "metrics.HarmonicMean", result(m.HarmonicMean(), distance)
    hamming = m.HammingLoss(mode="multilabel", threshold=0.5)
    yield "metrics.HammingLoss", result(hamming, y_true, y_pred)
    pearson = m.PearsonsCorrelation()
    yield "metrics.PearsonsCorrelation", result(pearson, y_true.ravel(), y_pred.ravel())
    yield "metrics.RSquare", result(m.RSquare(), y_true, y_pred)
    yield "metrics.hamming_distance", m.hamming_distance(y_true[0], y_true[1])
    angles = images.angles_to_projective_transforms(0.3, 6.0, 7.0)
    yield "image.angles_to_projective_transforms", angles
    yield "image.mean_filter2d", images.mean_filter2d(image, 3)
    plain = tf.constant(image[0])
    yield "image.shear_x", images.shear_x(plain, 0.3, 0.0)[None]
    yield "image.shear_y", images.shear_y(plain, 0.3, 0.0)[None]
    matrix = [0.9, 0.2, 0.5, -0.1, 1.1, 0.3, 0.0, 0.0]
    yield "image.transform", images.transform(image, matrix)
    yield "image.translate", images.translate(image, [2.0, 1.0])
    moved = images.translations_to_projective_transforms([2.0, 1.0])
    yield "image.translations_to_projective_transforms", moved
    yield "seq2seq.SequenceLoss", sequence_loss()
    yield "seq2seq.hardmax", s.hardmax(x)
    yield "seq2seq.safe_cumprod", s.safe_cumprod(y_pred, axis=-1)
    yield "seq2seq.tile_batch", s.tile_batch(x, 2)


if __name__ == "__main__":
    np.savez(sys.argv[1], **{f"tfa.{name}": np.array(v) for name, v in values()})
