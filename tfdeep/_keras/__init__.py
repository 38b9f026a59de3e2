"""The one seam to Keras and TensorFlow.

All that they do not publish, every walk over layers and graphs, the train step, and
each change to an object of the user's stand here and nowhere else.
"""

from tfdeep._keras._installed import installed

__all__ = ["installed"]
