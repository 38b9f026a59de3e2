"""Reader for the zip files that `torch.save` writes, without PyTorch and pickle.

Such a file keeps its tensors' bytes in members of their own. `data.pkl`, a pickle,
says which member, dtype, shape and strides each tensor has. A pickle is a program;
here a small machine runs only those of its instructions that build dictionaries,
lists and tensors. Names of functions stay text, so nothing that the file names is
ever imported or called.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from tfdeep.checkpoints._readers._checks import Checks, Limits
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._tensors import TensorInfo
from tfdeep.checkpoints._readers._zip import Archive, Member
from tfdeep.errors import (
    CheckpointError,
    LimitError,
    UnknownFormatError,
    UnsafeFileError,
)

_PICKLE_BYTES = 64 << 20
_OPCODES = 5_000_000
_DEPTH = 64
_LARGEST_KEY = 1 << 60
_FAULTS = (ValueError, IndexError, KeyError, TypeError, OverflowError)
_SAVE_AGAIN = (
    "where it was made, save `model.state_dict()` with torch.save, or as safetensors"
)
_STATE_DICT = "a state dict: tensors in dictionaries"

_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16"},
    **{"BFloat16": "bfloat16", "Long": "int64", "Int": "int32", "Short": "int16"},
    **{"Char": "int8", "Byte": "uint8", "Bool": "bool"},
    **{"ComplexDouble": "complex128", "ComplexFloat": "complex64"},
}
_BY_STORAGE = {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
_BY_DTYPE = {
    f"torch.{name}": name
    for name in (
        *_STORAGES.values(),
        *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz"),
    )
}

# The first value of a file of torch < 1.6: a number that only such files begin with.
_LEGACY_NUMBER = b"\x8a\nl\xfc\x9c"


def is_legacy_torch(start: bytes) -> bool:
    """Whether a file that begins with these bytes is one that torch < 1.6 wrote."""
    # Since protocol 4 the length of a frame comes before the number.
    return start.startswith(b"\x80") and _LEGACY_NUMBER in start[2:16]


def legacy_torch_error(source: str) -> UnknownFormatError:
    """The error for a file that torch < 1.6 wrote."""
    return Checks(source, TorchReader.format, Limits()).unknown(
        "This PyTorch checkpoint has the format that torch used before 1.6.",
        "a bare pickle",
        "the zip archive that torch.save writes since 1.6",
        "save it again with torch >= 1.6 or as safetensors",
    )


@dataclasses.dataclass(frozen=True)
class _Symbol:
    """The name of a class or function of Python; never the thing itself."""

    name: str


class _OrderedDict(dict[Any, Any]):
    """Takes the place of the `OrderedDict` that a state dict is."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A member with values; `dtype` is None where each tensor tells it."""

    member: str
    dtype: str | None
    nbytes: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides are in elements."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchReader(Reader):
    """Reads a `.pt`, `.pth` or `.bin` file that `torch.save` wrote (torch >= 1.6).

    A tensor's name is the keys of the dictionaries around it, joined by "/"; within a
    state dict names keep their dots: "model/layer1.0.conv1.weight". Items of lists
    and tuples are numbered. A file that is one tensor calls it "tensor". Numbers and
    text are ignored. The archive carries a CRC of each storage, which is checked
    when a tensor of it is read, unless the writer left it out.
    """

    format = "PyTorch checkpoint"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        super().__init__(source, limits)
        self._archive = Archive(self._checks)
        self._tensors: dict[str, _Tensor] = {}
        self._used: set[str] = set()
        self._shared: set[str] = set()
        self._kept: tuple[str, np.ndarray] | None = None
        with self.closed_on_error():
            self._list()

    def _list(self) -> None:
        checks = self._checks
        top = self._top()
        self._check_byte_order(f"{top}/byteorder")
        pickled = f"{top}/data.pkl"
        size = self._archive.members[pickled].size
        if size > _PICKLE_BYTES:
            raise _too_much(checks, f"{pickled!r} of {size} bytes", _PICKLE_BYTES)
        checks.count("header_bytes", size)
        content = self._archive.read(pickled).tobytes()
        machine = _Machine(checks, f"{top}/data/", self._archive.members)
        infos: list[TensorInfo] = []
        try:
            for path, tensor in _walk(checks, machine.run(content)):
                checks.count("tensors", len(infos) + 1)
                infos.append(self._info(path, tensor))
        except CheckpointError:
            raise
        except _FAULTS as error:
            raise checks.damaged(f"{pickled!r}: {str(error)[:200]}") from error
        self._accept(infos, os.path.getsize(self.source))
        members = [self._archive.members[name] for name in (pickled, *self._used)]
        self._set_integrity(all(member.crc is not None for member in members))

    def _top(self) -> str:
        """The directory within the archive that everything lies in."""
        tops = [
            name.removesuffix("/data.pkl")
            for name in self._archive.members
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(tops) != 1:
            raise self._checks.unknown(
                "This archive is not a PyTorch checkpoint.",
                f"{len(tops)} members 'data.pkl'",
                "an archive as torch.save writes it",
                _SAVE_AGAIN,
            )
        (top,) = tops
        script = (f"{top}/constants.pkl", f"{top}/code/")
        if any(name.startswith(script) for name in self._archive.members):
            raise self._checks.unknown(
                "This is a TorchScript program, not a file of weights.",
                "an archive with code",
                _STATE_DICT,
                _SAVE_AGAIN,
            )
        return top

    def _check_byte_order(self, name: str) -> None:
        if name not in self._archive.members:
            return
        order = self._archive.read_start(name, 16)
        if order == b"big":
            raise self._checks.unknown(
                "This PyTorch checkpoint was written on a big-endian machine.",
                f"byte order {order.decode()!r}",
                "byte order 'little'",
                "save it as safetensors there",
            )
        if order != b"little":
            raise self._checks.damaged(f"{name!r} contains {order!r}")

    def _info(self, path: tuple[str, ...], tensor: _Tensor) -> TensorInfo:
        length = sum(map(len, path)) + len(path)
        self._checks.count("name_bytes", length)
        name = "/".join(path) if path else "tensor"
        member = tensor.storage.member
        (self._shared if member in self._used else self._used).add(member)
        self._tensors[name] = tensor
        return TensorInfo(name, tensor.shape, tensor.dtype, member)

    def read(self, name: str) -> np.ndarray:
        info, tensor = self.info(name), self._tensors[name]
        dtype = self._checks.dtype(name, info.dtype)
        content = self._content(tensor.storage.member)
        if 0 in info.shape:
            return np.empty(info.shape, dtype)
        strides = [
            # An axis of length 1 may declare any stride.
            stride * dtype.itemsize if n > 1 else 0
            for n, stride in zip(info.shape, tensor.strides, strict=True)
        ]
        offset = tensor.offset * dtype.itemsize
        view: np.ndarray = np.ndarray(info.shape, dtype, content, offset, strides)
        if view.nbytes < len(content):
            return np.array(view, order="C")
        return np.ascontiguousarray(view).reshape(info.shape)

    def _content(self, member: str) -> np.ndarray:
        """The bytes of a storage; the last one is kept if several tensors share it."""
        kept = self._kept  # another thread may replace it
        if kept is not None and kept[0] == member:
            return kept[1]
        self._kept = None
        content = self._archive.read(member)
        if member in self._shared:
            content.flags.writeable = False
            self._kept = member, content
        return content

    def close(self) -> None:
        self._kept = None
        self._archive.close()


class _Machine:
    """Runs those instructions of a pickle that only build values.

    Args:
        checks: The checks of the file.
        folder: What the names of the members with values begin with.
        members: The members of the archive.
    """

    def __init__(
        self, checks: Checks, folder: str, members: Mapping[str, Member]
    ) -> None:
        self._checks, self._folder, self._members = checks, folder, members
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, _Storage] = {}
        push = self._push
        self._steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_PUSHED, push),
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_TUPLE": lambda _: push(()),
            "MARK": self._mark,
            "TUPLE": lambda _: push(tuple(self._marked_items())),
            "TUPLE1": lambda _: push(tuple(self._pop(1))),
            "TUPLE2": lambda _: push(tuple(self._pop(2))),
            "TUPLE3": lambda _: push(tuple(self._pop(3))),
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "BINGET": self._recall,
            "LONG_BINGET": self._recall,
            "APPEND": lambda _: self._append(self._pop(1)),
            "APPENDS": lambda _: self._append(self._marked_items()),
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._marked_items()),
            "GLOBAL": lambda name: push(_Symbol(name.replace(" ", ".", 1))),
            "STACK_GLOBAL": self._stack_global,
            "BINPERSID": lambda _: push(self._storage(*self._pop(1))),
            "REDUCE": lambda _: push(self._call(*self._pop(2))),
            "NEWOBJ": lambda _: self._refuse(self._pop(2)[0]),
            "NEWOBJ_EX": lambda _: self._refuse(self._pop(3)[0]),
            "BUILD": lambda _: self._build(*self._pop(2)),
        }
        self._calls: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": lambda: _OrderedDict(),
            "torch.Size": lambda shape: _whole(shape),
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_dtype,
        }

    def run(self, content: bytes) -> Any:
        """What the pickle describes: containers, `_Tensor`s, numbers and text.

        Raises:
            ValueError: And other built-in errors, if the pickle is malformed.
            UnsafeFileError: If it has an instruction or a call that is not known.
        """
        file = io.BytesIO(content)
        opcodes = enumerate(pickletools.genops(file))
        for count, (opcode, argument, position) in opcodes:
            if count >= _OPCODES:
                raise _too_much(self._checks, "a pickle of more opcodes", _OPCODES)
            if (position == 0) != (opcode.name == "PROTO"):
                raise ValueError("it does not begin like a pickle")
            step = self._steps.get(opcode.name)
            if step is None:
                raise _unsafe(self._checks, f"the opcode {opcode.name}")
            step(argument)
        if file.read(1) or self._marked or len(self._stack) != 1:
            raise ValueError("it does not end like a pickle")
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("an opcode finds too little on the stack")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _marked_items(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError("it recalls something that it never stored")
        self._push(self._memo[index])

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("it appends to something that is not a list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, _OrderedDict) or len(items) % 2:
            raise ValueError("it sets items of something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Longer numbers can be chosen to have one hash, which takes forever.
            if not isinstance(key, str) and not (
                isinstance(key, int) and abs(key) < _LARGEST_KEY
            ):
                raise ValueError("a key is neither text nor a small whole number")
            if key in target:
                raise ValueError(f"the key {str(key)[:80]!r} is there twice")
            target[key] = value

    def _stack_global(self, _: Any) -> None:
        module, name = self._pop(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name is not text")
        self._push(_Symbol(f"{module}.{name}"))

    def _call(self, called: Any, arguments: Any) -> Any:
        known = self._calls.get(called.name) if type(called) is _Symbol else None
        if known is None:
            self._refuse(called)
        try:
            return known(*arguments)
        except TypeError as error:
            reason = f"{called.name} is called with the wrong arguments"
            raise ValueError(reason) from error

    def _refuse(self, called: Any) -> NoReturn:
        if type(called) is not _Symbol:
            raise ValueError("it calls something that is not a function")
        raise _unsafe(self._checks, f"a call of {called.name[:200]!r}")

    def _build(self, target: Any, state: Any) -> None:
        # torch.save keeps the versions of modules as attribute of the state dict.
        if type(target) is not _OrderedDict or type(state) is not dict:
            name = target.name if type(target) is _Symbol else type(target).__name__
            raise _unsafe(self._checks, f"attributes for {name[:200]!r}")
        self._push(target)

    def _storage(self, identity: Any) -> _Storage:
        """The storage that ("storage", type, key, location, numel) names."""
        if type(identity) is not tuple or len(identity) != 5:
            raise ValueError("a storage is not described")
        kind, symbol, key, _, count = identity
        if kind != "storage" or type(symbol) is not _Symbol or type(key) is not str:
            raise ValueError("a storage is not described")
        if symbol.name not in (*_BY_STORAGE, *_UNTYPED):
            raise self._checks.unknown(
                "This PyTorch checkpoint holds values of a type that tfdeep does not "
                "read.",
                f"a {symbol.name[:200]!r}",
                "plain floating point numbers, integers or booleans",
                "save the weights as one of these",
            )
        dtype = _BY_STORAGE.get(symbol.name)
        itemsize = 1 if dtype is None else self._checks.dtype(key, dtype).itemsize
        (numel,) = _whole((count,))
        storage = _Storage(self._folder + key, dtype, numel * itemsize)
        member = self._members.get(storage.member)
        if member is None:
            raise ValueError(f"there is no storage {key[:80]!r}")
        if member.is_compressed:
            raise _unsafe(self._checks, f"the compressed storage {key[:80]!r}")
        if member.size != storage.nbytes:
            raise ValueError(
                f"storage {key[:80]!r} of {member.size} bytes declares {storage.nbytes}"
            )
        if self._storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key[:80]!r} is declared in two ways")
        return storage

    def _tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        _requires_grad: Any,
        _hooks: Any,
        metadata: Any = None,
        dtype: str | None = None,
    ) -> _Tensor:
        if type(storage) is not _Storage:
            raise ValueError("a tensor has no storage")
        dtype = dtype or storage.dtype
        if dtype is None:
            raise ValueError("a tensor has no dtype")
        if metadata:
            # Values that are still to be conjugated or negated.
            raise _unsafe(self._checks, "a tensor with metadata")
        shape, strides, (offset,) = _whole(shape), _whole(strides), _whole((offset,))
        last = offset
        if 0 not in shape:
            last += 1 + sum(
                (n - 1) * stride for n, stride in zip(shape, strides, strict=True)
            )
        itemsize = self._checks.dtype(storage.member, dtype).itemsize
        if len(shape) != len(strides) or last > storage.nbytes // itemsize:
            raise ValueError(f"a tensor lies outside its storage {storage.member!r}")
        return _Tensor(storage, dtype, offset, shape, strides)

    def _tensor_of_dtype(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        _requires_grad: Any,
        _hooks: Any,
        symbol: Any,
        metadata: Any = None,
    ) -> _Tensor:
        if type(symbol) is not _Symbol or symbol.name not in _BY_DTYPE:
            raise ValueError("a tensor has no dtype")
        dtype = _BY_DTYPE[symbol.name]
        if type(storage) is not _Storage or storage.dtype not in (None, dtype):
            raise ValueError("a tensor has another dtype than its storage")
        return self._tensor(
            storage, offset, shape, strides, None, None, metadata, dtype
        )


# Opcodes whose argument is the value. No number among them has over 255 bytes.
_PUSHED = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)


def _parameter(tensor: Any, _requires_grad: Any, _hooks: Any, _: Any = None) -> _Tensor:
    if type(tensor) is not _Tensor:
        raise ValueError("a parameter is not a tensor")
    return tensor


def _whole(values: Any) -> tuple[int, ...]:
    """A tuple of whole numbers from 0 on, or an error."""
    if type(values) is not tuple or not all(type(n) is int and n >= 0 for n in values):
        raise ValueError("a shape, stride or offset is invalid")
    return values


def _walk(checks: Checks, root: Any) -> Iterator[tuple[tuple[str, ...], _Tensor]]:
    """Each tensor with the keys that lead to it.

    A pickle may put one list into itself, or twice into the next, and so on: depth
    and visits are counted, not bytes.
    """
    visits = 0

    def visit(
        value: Any, path: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], _Tensor]]:
        nonlocal visits
        if isinstance(value, _Tensor):
            yield path, value
        if not isinstance(value, (dict, list, tuple)):
            return
        if len(path) >= _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} deep")
        visits += 1 + len(value)
        if visits > _OPCODES:
            raise _too_much(checks, "more values", _OPCODES)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if isinstance(inner, (dict, list, tuple, _Tensor)):
                yield from visit(inner, (*path, str(key)))

    yield from visit(root, ())


def _unsafe(checks: Checks, what: str) -> UnsafeFileError:
    return checks.unsafe(
        "This PyTorch checkpoint asks for more than tensors; nothing in it was run.",
        what,
        _STATE_DICT,
        _SAVE_AGAIN,
    )


def _too_much(checks: Checks, what: str, limit: int) -> LimitError:
    return checks.too_much(
        "This PyTorch checkpoint declares more than tfdeep reads.",
        what,
        f"at most {limit}",
        _SAVE_AGAIN,
    )
