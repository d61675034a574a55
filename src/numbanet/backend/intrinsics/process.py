"""A number that tells this process, and its forks, from all others.

Addresses are data in an array that the user may store or send to another process. Code that is
about to follow them compares the number that was stored beside them.
"""

import ctypes
import os

from llvmlite import binding, ir
from numba.core import types
from numba.extending import intrinsic

_SYMBOL = "numbanet_process_token"
_token = ctypes.c_int64(int.from_bytes(os.urandom(7), "little") | 1)
binding.add_symbol(_SYMBOL, ctypes.addressof(_token))

PROCESS_TOKEN = _token.value
"""What `process_token` gives, for Python."""


@intrinsic
def process_token(typingctx):
    """Return the number of this process: read by a symbol, so that code on disk holds no number."""

    def codegen(context, builder, signature, args):
        return builder.load(context.get_c_value(builder, ir.IntType(64), _SYMBOL))

    return types.int64(), codegen
