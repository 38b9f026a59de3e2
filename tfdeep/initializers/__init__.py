"""How weights start, by the activation and the layer they are for."""

from tfdeep.initializers._fixup import Fixup
from tfdeep.initializers._gain import gain
from tfdeep.initializers._lsuv import LsuvLayer, LsuvReport, lsuv
from tfdeep.initializers._orthogonal import DeltaOrthogonal, Orthogonal
from tfdeep.initializers._presets import (
    HeNormal,
    HeUniform,
    LeCunNormal,
    LeCunUniform,
    XavierNormal,
    XavierUniform,
)
from tfdeep.initializers._reinitialize import (
    DrawnVariable,
    ReinitializeReport,
    reinitialize,
)
from tfdeep.initializers._variance_scaling import VarianceScaling

__all__ = [
    "DeltaOrthogonal",
    "DrawnVariable",
    "Fixup",
    "HeNormal",
    "HeUniform",
    "LeCunNormal",
    "LeCunUniform",
    "LsuvLayer",
    "LsuvReport",
    "Orthogonal",
    "ReinitializeReport",
    "VarianceScaling",
    "XavierNormal",
    "XavierUniform",
    "gain",
    "lsuv",
    "reinitialize",
]
