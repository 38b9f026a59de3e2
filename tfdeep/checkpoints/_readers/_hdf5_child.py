"""Lists and decodes HDF5 files in a process of its own, for `_hdf5`.

It needs only the standard library, h5py and NumPy. The file to read is the standard
input; what to do is the first argument, in JSON. The answers are lines of JSON:
`{"progress": true}` while it works, then what was asked for or `{"fault": ...}`.
Behind `{"bytes": n}` come n bytes of values, in little-endian order.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from typing import Any

LONGEST_MESSAGE = 64 << 20
_DEEPEST = 64
_BLOCK = 32 << 20
_LONGEST_REASON = 300
_BETWEEN_SIGNS = 0.5  # seconds

_LISTS = ("layer_names", "weight_names")

# Bytes; where sign, exponent and mantissa begin and how long they are; exponent's bias.
_FLOATS = {
    (2, 15, 10, 5, 0, 10, 15): "float16",
    (4, 31, 23, 8, 0, 23, 127): "float32",
    (8, 63, 52, 11, 0, 52, 1023): "float64",
    (2, 15, 7, 8, 0, 7, 127): "bfloat16",
    (1, 7, 2, 5, 0, 2, 15): "float8_e5m2",
    (1, 7, 3, 4, 0, 3, 7): "float8_e4m3fn",
}


class Fault(Exception):
    """Why the file is refused; the parent makes its own error of the details."""

    def __init__(self, kind: str, **details: object) -> None:
        super().__init__(kind)
        self.details = {"kind": kind, **details}


class Window(io.RawIOBase):
    """A part of an open file, to read only.

    Reads leave the position of the descriptor alone, as the parent shares it. Each is
    progress, of which the parent is told now and then.

    Args:
        descriptor: The open file.
        begin: Where the part begins.
        size: How many bytes it has.
        latest: The processor time at which to give up, where the system has no such
            limit; in seconds.
    """

    def __init__(self, descriptor: int, begin: int, size: int, latest: float) -> None:
        super().__init__()
        self._descriptor, self._begin, self._size = descriptor, begin, size
        self._latest, self._last_sign = latest, time.monotonic()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done, position = 0, self._position
        if position + len(view) > self._size:
            raise OSError("it ends too soon")
        while done < len(view):
            part = self._read_at(self._begin + position + done, len(view) - done)
            if not part:
                raise OSError("it ends too soon")
            view[done : done + len(part)] = part
            done += len(part)
        self._position = position + done
        self._show_progress()
        return done

    def _read_at(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, count, offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        return os.read(self._descriptor, count)

    def _show_progress(self) -> None:
        if time.process_time() > self._latest:
            _say({"fault": {"kind": "time"}})
            os._exit(0)
        if time.monotonic() - self._last_sign > _BETWEEN_SIGNS:
            self._last_sign = time.monotonic()
            _say({"progress": True})


class Listing:
    """Groups and datasets of a file, as plain values.

    Args:
        root: The identifier of the root group.
        members: The most groups.
        tensors: The most datasets.
    """

    def __init__(self, root: Any, members: int, tensors: int) -> None:
        self._most = {"members": members, "tensors": tensors}
        self._seen: set[int] = set()
        self.groups: list[dict[str, Any]] = []
        self.datasets: list[dict[str, Any]] = []
        self._add_group(root, "", 0)

    def _add_group(self, group: Any, path: str, depth: int) -> None:
        from h5py import h5d, h5g, h5l, h5o

        if depth > _DEEPEST:
            raise Fault("unsafe", reason="groups nested too deep", place=path)
        self._visit(group, path)
        self._count("members", len(self.groups) + 1)
        self.groups.append({"path": path, **_group_attributes(group, path)})
        for link in list(group):
            name = link.decode("utf-8", "surrogateescape")
            place = f"{path}/{name}" if path else name
            if group.links.get_info(link).type != h5l.TYPE_HARD:
                reason = "a link to another place"
                raise Fault("unsafe", reason=reason, place=place)
            inner = h5o.open(group, link)
            if isinstance(inner, h5g.GroupID):
                self._add_group(inner, place, depth + 1)
            elif isinstance(inner, h5d.DatasetID):
                self._visit(inner, place)
                self._count("tensors", len(self.datasets) + 1)
                self.datasets.append({"path": place, **_dataset(inner, place)})
            else:
                reason = "something other than groups and values"
                raise Fault("unsafe", reason=reason, place=place)

    def _visit(self, entry: Any, path: str) -> None:
        from h5py import h5o

        address = h5o.get_info(entry).addr
        if address in self._seen:
            raise Fault("unsafe", reason="one object in two places", place=path)
        self._seen.add(address)

    def _count(self, name: str, count: int) -> None:
        if count > self._most[name]:
            raise Fault("limit", name=name, count=count)


def _group_attributes(group: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if path.rpartition("/")[2] == "vars":
        names = _texts(group, "name")
        if names is not None and len(names) == 1:
            found["name"] = names[0]
    for name in _LISTS:
        names = _texts(group, name)
        # A long list is split over several attributes.
        part = 0
        while (more := _texts(group, f"{name}{part}")) is not None:
            names = (names or []) + more
            part += 1
        if names is not None:
            found[name] = names
    return found


def _texts(entry: Any, name: str) -> list[str] | None:
    """The strings of an attribute; None if there is none of this name."""
    from h5py import h5a, h5t

    if not h5a.exists(entry, name.encode()):
        return None
    attribute = h5a.open(entry, name.encode())
    kind = attribute.get_type()
    count = attribute.get_space().get_simple_extent_npoints()
    if count == 0:
        # An empty list is kept as an empty array of numbers.
        return []
    if kind.get_class() != h5t.STRING:
        raise Fault("corrupt", reason=f"the attribute {name!r} is not text")
    if count * kind.get_size() > LONGEST_MESSAGE:
        raise Fault("corrupt", reason=f"the attribute {name!r} is too long")
    return [
        value.decode("utf-8", "surrogateescape")
        if isinstance(value, bytes)
        else str(value)
        for value in _values(attribute).reshape(-1)
    ]


def _values(attribute: Any) -> Any:
    import numpy as np

    values = np.zeros(attribute.shape, attribute.dtype)
    attribute.read(values)
    return values


def _dataset(dataset: Any, path: str) -> dict[str, Any]:
    from h5py import h5d, h5s, h5z

    created = dataset.get_create_plist()
    storage = created.get_layout()
    is_outside = storage == h5d.VIRTUAL or created.get_external_count() > 0
    if is_outside:
        raise Fault("unsafe", reason="values kept in another file", place=path)
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    known = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
    if not known.issuperset(filters) or len(set(filters)) < len(filters):
        reason = f"values packed by the filters {filters}"
        raise Fault("unsafe", reason=reason, place=path)
    space = dataset.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        raise Fault("corrupt", reason=f"{path!r} has no values")
    kind = dataset.get_type()
    dtype, order = _dtype(kind)
    shape = space.get_simple_extent_dims()
    if storage == h5d.CHUNKED:
        chunk = math.prod(created.get_chunk()) * kind.get_size()
        if chunk > max(math.prod(shape) * kind.get_size(), _BLOCK):
            reason = f"{path!r} is packed as a part of {chunk} bytes"
            raise Fault("corrupt", reason=reason)
    texts = _texts(dataset, "dtype")
    offset = dataset.get_offset() if storage == h5d.CONTIGUOUS else None
    names = {h5d.CHUNKED: "chunked", h5d.COMPACT: "compact"}
    names[h5d.CONTIGUOUS] = "unallocated" if offset is None else "contiguous"
    return {
        "dtype": dtype,
        "order": order,
        "itemsize": kind.get_size(),
        "shape": list(shape),
        "storage": names[storage],
        "offset": offset,
        "stored": dataset.get_storage_size(),
        "is_compressed": h5z.FILTER_DEFLATE in filters,
        "declared": texts[0] if texts is not None and len(texts) == 1 else None,
        "crc32": _whole_number(dataset, "crc32"),
    }


def _whole_number(entry: Any, name: str) -> int | None:
    from h5py import h5a, h5t

    if not h5a.exists(entry, name.encode()):
        return None
    attribute = h5a.open(entry, name.encode())
    is_one = attribute.get_space().get_simple_extent_npoints() == 1
    if not is_one or attribute.get_type().get_class() != h5t.INTEGER:
        return None
    return int(_values(attribute).reshape(-1)[0])


def _dtype(kind: Any) -> tuple[str, str]:
    """Name and byte order of the values, or what else they are."""
    from h5py import h5t

    names = {
        **{h5t.STRING: "text", h5t.COMPOUND: "compound", h5t.VLEN: "vlen"},
        **{h5t.REFERENCE: "reference", h5t.OPAQUE: "opaque", h5t.ARRAY: "array"},
        **{h5t.BITFIELD: "bitfield", h5t.TIME: "time", h5t.ENUM: "enum"},
    }
    family, size = kind.get_class(), kind.get_size()
    if family == h5t.ENUM:
        is_bool = size == 1 and kind.get_nmembers() == 2
        members = {
            kind.get_member_name(i): kind.get_member_value(i)
            for i in range(2 if is_bool else 0)
        }
        return ("bool" if members == {b"FALSE": 0, b"TRUE": 1} else "enum"), "little"
    if family not in (h5t.INTEGER, h5t.FLOAT):
        return names.get(family, f"class {family}"), "little"
    orders = {h5t.ORDER_LE: "little", h5t.ORDER_BE: "big"}
    order = orders.get(kind.get_order(), "")
    is_plain = kind.get_precision() == 8 * size and kind.get_offset() == 0
    if not order or not is_plain:
        return f"number of {kind.get_precision()} bits", order
    if family == h5t.INTEGER:
        sign = "" if kind.get_sign() == h5t.SGN_2 else "u"
        return f"{sign}int{8 * size}", order
    bits = (size, *kind.get_fields(), kind.get_ebias())
    if bits in _FLOATS and kind.get_norm() == h5t.NORM_IMPLIED:
        return _FLOATS[bits], order
    return f"floating point number of {size} bytes", order


def _write_values(root: Any, path: str, count: int) -> None:
    """Writes the values of a dataset, some rows at a time."""
    import numpy as np
    from h5py import h5d, h5o, h5s, h5t

    dataset = h5o.open(root, path.encode("utf-8", "surrogateescape"))
    _dataset(dataset, path)
    shape = tuple(dataset.get_space().get_simple_extent_dims())
    kind = dataset.get_type()
    itemsize = kind.get_size()
    if math.prod(shape) * itemsize != count:
        raise Fault("corrupt", reason=f"{path!r} does not have {count} bytes")
    if kind.get_class() in (h5t.INTEGER, h5t.FLOAT):
        kind = kind.copy()
        kind.set_order(h5t.ORDER_LE)
    created = dataset.get_create_plist()
    rows = shape[0] if shape else 1
    step = rows
    if created.get_layout() == h5d.CHUNKED:
        # Whole chunks, as each would else be decoded again for every block.
        chunk = created.get_chunk()[0]
        step = chunk * max(1, _BLOCK // max(1, count // rows * chunk))
    for first in range(0, rows, step):
        number = min(step, rows - first)
        space = dataset.get_space()
        if shape:
            start = (first, *(0 for _ in shape[1:]))
            space.select_hyperslab(start, (number, *shape[1:]))
        values = np.empty(count // rows * number, np.uint8)
        memory = h5s.create_simple((values.size // itemsize,))
        dataset.read(memory, space, values, kind)
        _say({"bytes": values.size})
        sys.stdout.buffer.write(values.data)
        sys.stdout.buffer.flush()


def _say(message: dict[str, Any]) -> None:
    text = json.dumps(message).encode("ascii")
    if len(text) > LONGEST_MESSAGE:
        reason = f"its names take more than {LONGEST_MESSAGE} bytes"
        text = json.dumps({"fault": {"kind": "corrupt", "reason": reason}}).encode()
    sys.stdout.buffer.write(text + b"\n")
    sys.stdout.buffer.flush()


def _limit(seconds: int, memory: int) -> None:
    """Limits this process from now on, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for what, most in (
        (resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(what)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        try:
            resource.setrlimit(what, (most, hard))
        except (OSError, ValueError):
            # Some systems do not limit the address space.
            continue


def main(argument: str) -> None:
    """Does what the parent asks.

    Args:
        argument: The request, in JSON.
    """
    request = json.loads(argument)
    sys.path += request["paths"]
    try:
        import h5py
        from h5py import h5g
    except ImportError as error:
        _say({"fault": {"kind": "import", "reason": str(error)}})
        return
    _say({"progress": True})
    _limit(request["seconds"], request["memory"])
    latest = time.process_time() + request["seconds"] + 1
    try:
        window = Window(0, request["begin"], request["size"], latest)
        root = h5g.open(h5py.File(window, "r").id, b"/")
        if "path" in request:
            _write_values(root, request["path"], request["count"])
            return
        listing = Listing(root, request["members"], request["tensors"])
        _say({"groups": listing.groups, "datasets": listing.datasets})
    except Fault as fault:
        _say({"fault": fault.details})
    except MemoryError:
        _say({"fault": {"kind": "corrupt", "reason": "it needs too much memory"}})
    except Exception as error:
        reason = str(error)[:_LONGEST_REASON] or type(error).__name__
        _say({"fault": {"kind": "corrupt", "reason": reason}})


if __name__ == "__main__":
    main(sys.argv[1])
    # Closing a damaged file may be what never returns.
    os._exit(0)
