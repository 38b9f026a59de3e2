"""The train function of a model, with recorders looking on."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from tfdeep.callbacks._recorder import StepRecorder


class WatchedTrainFunction:
    """Stands in for `model.train_function` while recorders watch.

    `fit` calls `model.train_function` for each execution of the train step, and
    TensorFlow traces the step in the first call. While a call runs, the recorders
    stand between the gradients and the optimizer; between calls, nothing of the model
    but this attribute is changed.

    A fit that fails leaves it behind. The next call that no callback announced
    therefore gives the model its own train function back.

    Attributes:
        is_expected: Set by a callback right before each call that is to be recorded.
    """

    def __init__(self, model: Any) -> None:
        self.is_expected = False
        self._model = model
        self._recorders: list[StepRecorder] = []
        self._was_called = False
        self._own: Any = self.own_of(model)
        model.make_train_function(force=True)  # a step that is not traced yet
        self._recorded = model.train_function
        model.train_function = self

    @classmethod
    def of(cls, model: Any, recorder: StepRecorder) -> WatchedTrainFunction:
        """Has a model's next train step watched by one more recorder."""
        current = model.train_function
        if not isinstance(current, cls) or current._was_called:
            current = cls(model)
        current._recorders.append(recorder)
        return current

    @classmethod
    def own_of(cls, model: Any) -> Any:
        """A model's own train function, watched or not."""
        current = model.train_function
        return current._own if isinstance(current, cls) else current

    def release(self, recorder: StepRecorder) -> None:
        """Ends the watch of a recorder, and with the last one the whole of it."""
        if recorder in self._recorders:
            self._recorders.remove(recorder)
        if not self._recorders:
            self._restore()

    def _restore(self) -> None:
        if self._model.train_function is self:
            self._model.train_function = self._own

    def __call__(self, iterator: Any) -> Any:
        self._was_called = True
        if not self.is_expected:
            self._restore()
            return self._model.train_function(iterator)
        self.is_expected = False
        if not self._model.built:
            _build(self._model, iterator)
        try:
            with contextlib.ExitStack() as stack:
                for recorder in self._recorders:
                    stack.enter_context(recorder.watching())
                return self._recorded(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise  # the data ended, as Keras expects
        except BaseException:
            self._restore()
            raise


def _build(model: Any, iterator: Any) -> None:
    """Builds a model for the data of its first step, as that step would.

    Recorders want to know its layers and first weights before the step is traced. A
    model with a train step of its own knows alone what the data means to it.
    """
    spec = getattr(iterator, "element_spec", None)
    if spec is None or type(model).train_step is not keras.Model.train_step:
        return
    x, _, _ = keras.utils.unpack_x_y_sample_weight(spec)
    model(
        keras.tree.map_structure(
            lambda s: keras.Input(batch_shape=s.shape, dtype=s.dtype.name), x
        )
    )
