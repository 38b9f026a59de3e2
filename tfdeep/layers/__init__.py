"""Layers that Keras lacks: activations, normalizations, and noise that regularizes.

Each one is a `keras.layers.Layer` that is saved and loaded without `custom_objects`.
"""

from tfdeep.layers._activation_properties import (
    ActivationProperties,
    activation_properties,
)
from tfdeep.layers._drop_block import DropBlock2D
from tfdeep.layers._local_response_normalization import LocalResponseNormalization
from tfdeep.layers._maxout import Maxout
from tfdeep.layers._monte_carlo_dropout import MCAlphaDropout, MCDropout, mc_predict
from tfdeep.layers._normalized_block import NormalizedBlock
from tfdeep.layers._recommend_activation import (
    ActivationAdvice,
    recommend_activation,
)
from tfdeep.layers._rrelu import RReLU
from tfdeep.layers._stochastic_depth import StochasticDepth
from tfdeep.layers._weight_normalization import WeightNormalization

__all__ = [
    "ActivationAdvice",
    "ActivationProperties",
    "DropBlock2D",
    "LocalResponseNormalization",
    "MCAlphaDropout",
    "MCDropout",
    "Maxout",
    "NormalizedBlock",
    "RReLU",
    "StochasticDepth",
    "WeightNormalization",
    "activation_properties",
    "mc_predict",
    "recommend_activation",
]
