"""The train step of a model: made, instrumented, kept and handed out in one place.

Keras keeps one train function, which goes on training the variables that were trainable
when TensorFlow traced it, and whose tracing takes seconds for a large model. Here a
model has one function for each state that its step can be in: the flags that say what
trains, and the observers that look on. What was traced once is not traced again.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfdeep._keras import _internals, _patches, _walk

_NAME = "_tfdeep_train_steps"

# A function of a large model holds some tens of megabytes.
_MOST_FUNCTIONS = 8

_REASON = "hands out the train step for what trains and who looks on"


class Observer(Protocol):
    """Looks on while the Python code of a train step runs."""

    def prepare(self) -> None:
        """Creates its variables, once the model has its own."""

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Looks on while the context is open."""


class TrainSteps:
    """The train functions of one model.

    Attributes:
        observers: Those who look on at the steps to come, until the fit ends.
        watchers: Those who look on at all steps, until their block ends.
        before_fit: Called when a fit begins, before its train function is chosen.
    """

    def __init__(self, model: Any) -> None:
        self.observers: tuple[Any, ...] = ()
        self.watchers: tuple[Any, ...] = ()
        self.before_fit: Callable[[], None] | None = None
        self._model = model
        self._functions: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._idle: list[Any] = []
        self._compiled: Any = None
        self._current: Any = None

    @classmethod
    def of(cls, model: Any) -> TrainSteps:
        """The train steps of a model; from now on its fits take theirs from here."""
        steps: TrainSteps | None = vars(model).get(_NAME)
        if steps is None:
            steps = cls(model)
            vars(model)[_NAME] = steps
            steps._adopt()
        if not _patches.is_installed(model, "make_train_function"):
            _patches.install(
                model, "make_train_function", steps._make_train_function, _REASON
            )
        return steps

    def is_observed_by(self, observer: Any) -> bool:
        """Whether this one looks on at the next step."""
        is_current = self._model.train_function is self._current
        return is_current and observer in self.observers

    @property
    def was_traced(self) -> bool:
        """Whether the step was traced, and keeps what it trained then."""
        return any(_internals.was_traced(one) for one in self._functions.values())

    def follow_flags(self, before_fit: Callable[[], None], is_up_to_date: bool) -> None:
        """Has the steps go by the `trainable` flags from now on.

        Args:
            before_fit: Called when a fit begins, before its train function is chosen.
            is_up_to_date: Whether what was traced so far trains what the flags say now.
        """
        if self.before_fit is not None:
            return
        self.before_fit = before_fit
        functions = self._functions if is_up_to_date else {}
        self._functions = collections.OrderedDict(
            ((self._flags(), observers), function)
            for (_, observers), function in functions.items()
        )

    def observer(
        self, is_wanted: Callable[[Any], bool], make: Callable[[], Any]
    ) -> Any:
        """An observer that was kept from an earlier fit and is not in use, or a new.

        Args:
            is_wanted: Whether an observer of the same compiled model will do.
            make: Makes one.
        """
        self._forget_if_compiled_anew()
        for one in self._idle:
            if one not in self.observers and is_wanted(one):
                return one
        one = make()
        self._idle.append(one)
        return one

    def observe(self, observers: Sequence[Observer]) -> None:
        """Has these, and no others, look on at the steps to come."""
        self.observers = tuple(observers)
        self.choose()

    def choose(self) -> None:
        """Gives the model the function for its flags and observers."""
        self._forget_if_compiled_anew()
        everyone = (*self.watchers, *self.observers)
        key = (self._flags(), everyone)
        if key not in self._functions:
            self._functions[key] = self._made(everyone)
        self._functions.move_to_end(key)
        while len(self._functions) > _MOST_FUNCTIONS:
            self._functions.popitem(last=False)
        in_use = {one for _, observers in self._functions for one in observers}
        self._idle = [one for one in self._idle if one in in_use | {*self.observers}]
        self._current = self._functions[key]
        self._model.train_function = self._current

    @classmethod
    def onlookers(cls, model: Any) -> tuple[Any, ...]:
        """Those who look on at the steps of a model now."""
        steps = vars(model).get(_NAME)
        return () if steps is None else (*steps.watchers, *steps.observers)

    @classmethod
    @contextlib.contextmanager
    def watched(cls, model: Any, watchers: Sequence[Observer]) -> Iterator[None]:
        """Has these look on at the model's own train step while the context is open."""
        is_new = _NAME not in vars(model)
        steps = cls.of(model)
        before = steps.watchers
        steps._watch((*before, *watchers))
        try:
            yield
        finally:
            steps._watch(before)
            is_used = steps.before_fit or steps.observers or steps._idle
            if is_new and not is_used:
                _patches.remove(model, "make_train_function")
                del vars(model)[_NAME]

    def _watch(self, watchers: tuple[Any, ...]) -> None:
        gone = {*self.watchers} - {*watchers}
        self.watchers = watchers
        is_own = self._model.train_function in self._functions.values()
        for key in [k for k in self._functions if gone.intersection(k[1])]:
            del self._functions[key]
        if is_own:
            self.choose()

    def _make_train_function(self, force: bool = False) -> None:
        """What `make_train_function` of the model is: a fit begins."""
        self.observers = ()  # a fit that failed has left its own
        model = self._model
        if force:
            self._functions.clear()
        elif self.before_fit is not None:
            self.before_fit()
        self._forget_if_compiled_anew()
        known = self._functions.values()
        is_own = any(model.train_function is function for function in known)
        if is_own or force or model.train_function is None:
            self.choose()

    def _adopt(self) -> None:
        """Keeps the function that the model has, which may have been traced."""
        self._compiled = _internals.compilation(self._model)
        if self._model.train_function is not None:
            self._functions[self._flags(), ()] = self._model.train_function

    def _forget_if_compiled_anew(self) -> None:
        if _internals.compilation(self._model) is not self._compiled:
            self._functions.clear()
            self._idle.clear()
            self._adopt()

    def _flags(self) -> Any:
        """What distinguishes the steps of one compiled model.

        Keras ignores flags that are set by hand after `compile`. They count once
        tfdeep was asked to go by them.
        """
        if self.before_fit is None:
            return None
        layers = (self._model, *_walk.every_layer(self._model))
        flags = (
            (id(layer), layer.trainable, _patches.is_installed(layer, "call"))
            for layer in layers
        )
        return (*flags, *map(id, self._model.trainable_variables))

    def _made(self, observers: tuple[Any, ...]) -> Any:
        model = self._model
        with contextlib.ExitStack() as stack:
            if observers:
                # Keras keeps the train step that it finds when it makes the function.
                watched = functools.partial(_watched, observers)
                stack.enter_context(_patches.replaced(model, "train_step", watched))
            type(model).make_train_function(model, force=True)
        function = model.train_function
        return self._prepared(function, observers) if observers else function

    def _prepared(self, function: Any, observers: tuple[Any, ...]) -> Any:
        """A train function before whose first step the observers are prepared."""
        is_prepared = False

        def prepared(iterator: Any) -> Any:
            nonlocal is_prepared
            if not is_prepared:
                is_prepared = True
                with contextlib.suppress(Exception):  # then the step itself builds it
                    _build(self._model, iterator)
                if self._model.built:
                    for observer in observers:
                        observer.prepare()
            return function(iterator)

        return prepared


def _watched(
    observers: tuple[Any, ...], train_step: Callable[..., Any]
) -> Callable[..., Any]:
    """A train step at which observers look on.

    They do so while its Python code runs: once, when TensorFlow traces it, or at every
    step if it runs eagerly. The replicas of a strategy run it in threads, by turns, so
    the observers stay from the first one's entry to the last one's exit.
    """
    lock = threading.RLock()
    looking = contextlib.ExitStack()
    inside = 0

    @functools.wraps(train_step)
    @tf.autograph.experimental.do_not_convert
    def watched(*args: Any, **kwargs: Any) -> Any:
        with looked_at():
            return train_step(*args, **kwargs)

    @contextlib.contextmanager
    def looked_at() -> Iterator[None]:
        nonlocal inside
        with lock:
            if inside == 0:
                for observer in observers:
                    looking.enter_context(observer.watching())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if inside == 0:
                    looking.close()

    return watched


def _build(model: Any, iterator: Any) -> None:
    """Builds a model and its optimizer for the first step, as that step would.

    Observers want to know the layers and first weights before the step is traced; and
    a step in which variables are made is traced twice. A model with a train step of
    its own knows alone what the data means to it, and what its optimizer trains.
    """
    if type(model).train_step is not keras.Model.train_step:
        return
    spec = getattr(iterator, "element_spec", None)
    if not model.built and spec is not None:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(spec)
        model(
            keras.tree.map_structure(
                lambda s: keras.Input(batch_shape=s.shape, dtype=s.dtype.name), x
            )
        )
    optimizer = model.optimizer
    if model.built and model.trainable_variables and not optimizer.built:
        with model.distribute_strategy.scope(), keras.name_scope(optimizer.name):
            optimizer.build(model.trainable_variables)
