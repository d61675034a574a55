"""Compiled functions bound to data: the code is shared, only the address of the data differs.

A BoundFunction is called from Python and from the user's compiled code. There it is a value that
holds the address of its record, so all of one class and dtype run the same machine code.
"""

import inspect
import weakref
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numba import from_dtype
from numba.core import types
from numba.core.datamodel import models, register_default
from numba.core.errors import TypingError
from numba.core.imputils import lower_constant
from numba.core.pythonapi import NativeValue
from numba.core.typing.templates import signature
from numba.extending import intrinsic, typeof_impl, unbox

from numbanet.backend.cache import source_hash

_records: list[np.ndarray] = []
"""The records of all bound functions that ever were."""


class BoundFunction:
    """A compiled function with its first argument bound to a record in memory.

    A subclass gives the function as `function(bound, *arguments)`, compiled once for each dtype and
    types of arguments. In it `as_pointer(bound, numba.int64)` reads the record, and
    `as_pointer(address, bound)` data of the dtype.

    record   int64 (n); whatever the function needs, never 0 in its first element. Compiled code
             holds its address alone: the record stays for ever, and is 0 once the BoundFunction is
             gone, so that a value kept in a jitclass or a list can tell
    dtype    of the data
    address  of the record
    """

    function: ClassVar[Any]

    def __init__(self, record: np.ndarray, dtype: np.dtype):
        self.record, self.dtype, self.address = record, dtype, record.ctypes.data
        _records.append(record)
        weakref.finalize(self, record.fill, 0)

    @classmethod
    def check(cls, *kinds) -> None:
        """TypingError for arguments of Numba types that the function does not take."""


class BoundType(types.Callable):
    """The Numba type of a BoundFunction; `instance_type` is the type of its data's elements.

    The sources of the package are in its name, so that code which the user has cached on disk does
    not meet the records of another version.
    """

    def __init__(self, cls: type[BoundFunction], dtype: np.dtype):
        self.cls, self.instance_type = cls, from_dtype(dtype)
        super().__init__(f"{cls.__qualname__}({dtype}, {source_hash()})")

    def get_call_type(self, context, args, kws):
        """The signature of a call, for which the function is compiled."""
        python = inspect.signature(self.cls.function.py_func)
        python = python.replace(parameters=list(python.parameters.values())[1:])
        try:
            args = python.bind(*args, **kws).args
        except TypeError as error:
            raise TypingError(f"a call of a {self.cls.__name__}: {error}") from None
        args = [types.unliteral(one) for one in args]
        self.cls.check(*args)
        found = self.cls.function._numba_type_.get_call_type(context, (self, *args), {})
        return signature(found.return_type, *args, recvr=self).replace(pysig=python)

    def get_call_signatures(self):
        """(signatures, whether there may be more), for Numba's messages."""
        return (), True

    def get_impl_key(self, sig):
        """The compiled function for a signature that begins with the bound value."""
        return self.cls.function.get_overload(sig.args)


@register_default(BoundType)
class _Address(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, manager[types.int64].get_value_type())


@typeof_impl.register(BoundFunction)
def _(value, context):
    return BoundType(type(value), value.dtype)


_held_by_code: WeakKeyDictionary = WeakKeyDictionary()
"""The bound functions whose addresses are constants in a piece of compiled code."""


@lower_constant(BoundType)
def _(context, builder, kind, value):
    _held_by_code.setdefault(context.active_code_library, []).append(value)
    place = context.add_dynamic_addr(builder, value.address, info=kind.name)  # prevents caching
    return builder.ptrtoint(place, context.get_value_type(kind))


@unbox(BoundType)
def _(kind, instance, c):
    address = c.pyapi.object_getattr_string(instance, "address")
    native = c.unbox(types.int64, address)
    c.pyapi.decref(address)
    return NativeValue(native.value, is_error=native.is_error)


def bind(cls: type[BoundFunction]):
    """Return an intrinsic that makes a bound function of its `address` and a Numba dtype."""

    @intrinsic
    def bound(typingctx, address, dtype):
        if isinstance(address, types.Integer) and isinstance(dtype, types.NumberClass):
            result = BoundType(cls, np.dtype(str(dtype.instance_type)))

            def codegen(context, builder, signature, args):
                return args[0]

            return result(types.int64, dtype), codegen

    return bound
