"""The one seam to Keras and TensorFlow: what they do not publish, and every walk."""
