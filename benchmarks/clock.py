"""The clock of the benchmarks that time `fit`."""

import gc
import time

import keras


class Clock(keras.callbacks.Callback):
    """Takes the time at the end of each epoch.

    The first epoch, in which TensorFlow traces the step, is not in `seconds`; what
    tracing leaves behind is collected before they begin.
    """

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            gc.collect()
        self.ends.append(time.perf_counter())

    def seconds(self):
        return self.ends[-1] - self.ends[0]
