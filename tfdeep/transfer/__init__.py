"""Reuse of pretrained layers: what `freeze`, `unfreeze` and `cache_frozen` report."""

from tfdeep.transfer._cache import CachedTensor, CacheReport
from tfdeep.transfer._freeze import FreezeReport, LayerState

__all__ = ["CacheReport", "CachedTensor", "FreezeReport", "LayerState"]
