"""Reuse of pretrained layers: what `freeze`, `unfreeze` and `cache_frozen` report.

`list_cache`, `verify_cache` and `remove_cache` look after what `cache_frozen` stores.
"""

from tfdeep.transfer._cache import CachedTensor, CacheReport
from tfdeep.transfer._freeze import FreezeReport, LayerState
from tfdeep.transfer._listing import (
    CacheListing,
    list_cache,
    remove_cache,
    verify_cache,
)
from tfdeep.transfer._shards import CacheEntry

__all__ = [
    "CacheEntry",
    "CacheListing",
    "CacheReport",
    "CachedTensor",
    "FreezeReport",
    "LayerState",
    "list_cache",
    "remove_cache",
    "verify_cache",
]
