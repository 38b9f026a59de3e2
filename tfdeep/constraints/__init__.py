"""Constraints on weights that know which axes hold the weights of one unit."""

from tfdeep.constraints._fan_in_max_norm import FanInMaxNorm

__all__ = ["FanInMaxNorm"]
