"""The train function of a model, with recorders looking on."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdeep._keras._layer_calls import replace
from tfdeep.callbacks._recorder import StepRecorder


class WatchedTrainFunction:
    """Stands in for `model.train_function` while recorders watch.

    It calls a train function made of the model's own train step, around which the
    recorders stand between the gradients and the optimizer. They do so while the
    Python code of the step runs: once, when TensorFlow traces it, or at every step if
    it runs eagerly. Otherwise nothing of the model but this attribute is changed.

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
        self._lock = threading.RLock()
        self._inside = 0
        self._looking = contextlib.ExitStack()
        self._own: Any = self.own_of(model)
        with contextlib.ExitStack() as stack:
            # Keras keeps the train step that it finds when it makes the function.
            replace(stack, model, "train_step", self._seen)
            model.make_train_function(force=True)
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
        if not self.is_expected:
            self._was_called = True
            self._restore()
            self._model.make_train_function()  # `compile` leaves the model without one
            return self._model.train_function(iterator)
        self.is_expected = False
        if not self._was_called:
            self._was_called = True
            self._prepare(iterator)
        try:
            return self._recorded(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise  # the data ended, as Keras expects
        except BaseException:
            self._restore()
            raise

    def _prepare(self, iterator: Any) -> None:
        if not self._model.built:
            _build(self._model, iterator)
        if self._model.built:
            for recorder in self._recorders:
                recorder.prepare()

    def _seen(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(train_step)
        @tf.autograph.experimental.do_not_convert
        def seen(*args: Any, **kwargs: Any) -> Any:
            with self._watching():
                return train_step(*args, **kwargs)

        return seen

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Looks on from the first replica's entry to the last one's exit.

        The replicas of a strategy run the step in threads, by turns.
        """
        with self._lock:
            if self._inside == 0:
                for recorder in self._recorders:
                    self._looking.enter_context(recorder.watching())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._looking.close()


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
