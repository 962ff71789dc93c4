"""Functions of arrays as machine code: compiled by numba once on a machine, and called without it ever after.

Importing numba and readying its compiler takes some 0.4 s, more than what it does for a small table. So the object code
of each function is kept in a file, as numba's cache would, and later processes load it through llvmlite alone.

Functions take C-contiguous arrays, int64 and float64, and release Python's lock. They raise nothing and allocate
nothing; what they find, they write to arrays. Those that only other functions call may return numbers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from autoembed.fast import takes
from autoembed.types import Array

if TYPE_CHECKING:
    from llvmlite import ir
    from numba.core.base import BaseContext
    from numba.core.typing import Signature
    from numba.types import Type

R = TypeVar("R")
Kind = tuple[np.dtype[np.generic], int] | type[float | np.generic]  # (dtype, dimensions) of an array, int or float
Kinds = tuple[Kind, ...]
_Number = ctypes.c_int64 | ctypes.c_double

FAST = takes("kernels")
_DIGEST = 32  # bytes at the head of a file
_LIBM = {"exp", "log", "sqrt"}
# Where a function writes that it returned None.
_NOTHING = np.zeros(8, np.int64)
_NOWHERE = _NOTHING.ctypes.data


class View:
    """An array as functions take it: made once, it spares each call a microsecond."""

    __slots__ = ("array", "fields", "kind")

    def __init__(self, array: Array) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"the array must be C-contiguous, but has strides {array.strides}")
        self.array = array
        self.kind = array.dtype, array.ndim
        # numba's layout: owner, parent, items, bytes of an item, address, shape, strides.
        self.fields = (0, 0, array.size, array.itemsize, array.ctypes.data, *array.shape, *array.strides)


class Native:
    """A function, compiled for each combination of argument types that it is called with."""

    def __init__(self, function: Callable[..., object], reorder: bool = False) -> None:
        self._function, self._reorder = function, reorder
        self._loaded: dict[Kinds, Callable[..., int]] = {}
        self._plain: Callable[..., None] | None = None
        self._lock = Lock()

    def __call__(self, *arguments: Array | View | float | np.generic) -> None:
        if not FAST:
            self._by_numba(*arguments)
            return
        kinds: list[Kind] = []
        values: list[float | np.generic] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                argument = View(argument)
            if isinstance(argument, View):
                kinds.append(argument.kind)
                values += argument.fields
            else:
                kinds.append(type(argument))
                values.append(argument)
        key = tuple(kinds)
        found = self._loaded.get(key)
        if found is None:
            with self._lock:
                found = self._loaded.setdefault(key, self._loaded.get(key) or self._load(key))
        found(_NOWHERE, 0, *values)

    def _by_numba(self, *arguments: Array | View | float | np.generic) -> None:
        """The plain path: numba compiles the function in this process and calls it."""
        with self._lock:
            self._plain = self._plain or self._numba()
        self._plain(*(one.array if isinstance(one, View) else one for one in arguments))

    def _load(self, kinds: Kinds) -> Callable[..., int]:
        name = f"{self._function.__module__.rpartition('.')[2]}.{self._function.__name__}-{self._digest(kinds)}.o"
        code = _read(name)
        if code is None:
            code = self._compile(kinds)
            _write(name, code)
        fields: list[type[_Number]] = [ctypes.c_int64] * 2
        for kind in kinds:
            fields += [ctypes.c_int64] * (5 + 2 * kind[1]) if isinstance(kind, tuple) else [_NUMBERS[kind]]
        function: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_int32, *fields)(
            _address(code, self._function.__name__)
        )
        return function

    def _digest(self, kinds: Kinds) -> str:
        """Of all that the machine code depends on."""
        source = Path(self._function.__code__.co_filename).read_bytes() + Path(__file__).read_bytes()
        facts = [llvmlite.__version__, platform.machine(), llvm.get_host_cpu_name(), *map(str, kinds)]
        facts.append(llvm.get_host_cpu_features().flatten())
        return hashlib.sha256(source + "\n".join(facts).encode()).hexdigest()[:16]

    def _numba(self) -> Any:  # numba has no types
        """numba's own function, with the functions that it calls."""
        import numba

        code, known = self._function.__code__, self._function.__globals__
        called = {name: known[name]._numba() for name in code.co_names if isinstance(known.get(name), Native)}
        body = FunctionType(code, {**known, **called}, self._function.__name__)
        # numpy's model of errors: a look at each divisor would keep a loop from taking several cells at a time.
        options: dict[str, object] = {"nogil": True, "error_model": "numpy", "_nrt": False}
        if self._reorder:
            options["fastmath"] = {"reassoc", "nsz", "contract"}
        return numba.njit(**options)(body)

    def _compile(self, kinds: Kinds) -> bytes:
        """Object code that needs nothing of Python or numba, and exports the function under its name."""
        from numba import float64, from_dtype, int64
        from numba.core import types

        numbers = {int: int64, float: float64}
        signature = tuple(
            types.Array(from_dtype(kind[0]), kind[1], "C") if isinstance(kind, tuple) else numbers[kind]
            for kind in kinds
        )
        compiled = self._numba()
        compiled.compile(signature)
        if compiled.overloads[signature].signature.return_type != types.none:
            raise RuntimeError(f"{self._function.__name__} must return nothing where it is not called by another")
        module = llvm.parse_assembly(compiled.inspect_llvm(signature))
        entry = compiled.overloads[signature].fndesc.llvm_func_name
        for function in module.functions:
            if function.name == entry:
                function.name = self._function.__name__
            elif not function.is_declaration:
                function.linkage = "internal"
        machine = _machine()
        passes = llvm.create_new_module_pass_manager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
        called = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
        if not called <= _LIBM:
            raise RuntimeError(f"{self._function.__name__} must not call {', '.join(sorted(called - _LIBM))}")
        code: bytes = machine.emit_object(module)
        return code


class _Prefetch(Native):
    """Machine code's own prefetch."""

    def __init__(self) -> None: ...

    def _numba(self) -> Any:
        from llvmlite import ir
        from numba.core import cgutils, types
        from numba.extending import intrinsic

        def call(context: BaseContext, array: Type, place: Type) -> tuple[Signature, Callable[..., ir.Value]]:
            def code(
                context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: list[ir.Value]
            ) -> ir.Value:
                data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
                number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
                kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
                function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
                address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
                # To read, to be kept in all caches but the first, data.
                builder.call(function, [address, *(ir.Constant(number, value) for value in (0, 2, 1))])
                return context.get_dummy_value()

            return types.none(array, place), code

        return intrinsic(call)


# prefetch(array, place): the memory there will be read soon. For functions that are compiled only.
prefetch = _Prefetch()

_NUMBERS: dict[type, type[_Number]] = {int: ctypes.c_int64, float: ctypes.c_double}


def native(function: Callable[..., R]) -> Callable[..., R]:
    """The function as machine code."""
    return cast(Callable[..., R], Native(function))


def summing(function: Callable[..., R]) -> Callable[..., R]:
    """The same; sums may be taken in any order."""
    return cast(Callable[..., R], Native(function, reorder=True))


@cache
def _target() -> llvm.Target:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


def _machine() -> llvm.TargetMachine:
    features = llvm.get_host_cpu_features().flatten()
    return _target().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True, reloc="pic"
    )


_engines: list[llvm.ExecutionEngine] = []  # what is loaded lives as long as these


def _address(code: bytes, name: str) -> int:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(name))


def _folders() -> list[Path]:
    """Beside the bytecode, and where that may not be written, in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [Path(__file__).parent / "__pycache__", Path(home) / "autoembed"]


def cache_folder() -> Path | None:
    """The folder that takes compiled code, made if need be; None if there is none."""
    for folder in _folders():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            if _trusted(folder) and os.access(folder, os.W_OK):
                return folder
        except OSError:
            continue
    return None


def _read(name: str) -> bytes | None:
    for folder in _folders():
        try:
            if not (_trusted(folder) and _trusted(folder / name)):
                continue
            content = (folder / name).read_bytes()
        except OSError:
            continue
        if _signed(name, content[_DIGEST:]) == content[:_DIGEST]:
            return content[_DIGEST:]
    return None


def _signed(name: str, code: bytes) -> bytes:
    """A hash of code and of what it was compiled from, so that a file cannot stand in for another."""
    return hashlib.sha256(name.encode() + b"\0" + code).digest()


def _trusted(path: Path) -> bool:
    """Whether nobody else may have put something there: what is read here is run."""
    if not hasattr(os, "getuid"):
        return True
    facts = path.lstat()
    return facts.st_uid in (0, os.getuid()) and not facts.st_mode & 0o022 and not stat.S_ISLNK(facts.st_mode)


def _write(name: str, code: bytes) -> None:
    """In the first folder that takes it; without one, the next process compiles again."""
    for folder in _folders():
        part = folder / f"{name}.{os.getpid()}"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            if not _trusted(folder):
                continue
            part.write_bytes(_signed(name, code) + code)
            part.chmod(0o644)
            part.replace(folder / name)
            return
        except OSError:
            continue
