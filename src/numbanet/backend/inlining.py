"""Helpers that are compiled into their callers alone: typed and lowered, nothing more.

Numba compiles each function for Python and for C too, optimises it and makes machine code of it,
each time. A helper that only other compiled code calls needs none of it: its callers link its LLVM
code as it was lowered and are optimised as a whole.
"""

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering


class _InlinedLibrary(JITCodeLibrary):
    """The LLVM code of a helper with that of its own helpers, to be linked and never run."""

    def finalize(self):
        """Link what the helper calls."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _InlinedLowering(NativeLowering):
    _name = "inlined_lowering"

    def run_pass(self, state):
        """Lower the function, without wrappers and without machine code."""
        flags, name = state.flags, state.func_id.func_name
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        state.library = _InlinedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        super().run_pass(state)
        lowered = state["cr"]
        # Numba finds the code by this object, which cannot be called
        key = _dynfunc.make_function(
            lowered.fndesc.lookup_module(), name, "", 0, lowered.env, (state.library,)
        )
        state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
        state["cr"] = _LowerResult(lowered.fndesc, lowered.call_helper, key, lowered.env)
        return True


class _InlinedCompiler(CompilerBase):
    def define_pipelines(self):
        """Numba's own pipeline with the lowering above."""
        usual = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes = [
            (_InlinedLowering, text) if found is NativeLowering else (found, text)
            for found, text in usual.passes
        ]
        usual._finalized, usual.passes = False, passes
        usual.finalize()
        return [usual]


class InlinedFunction(CPUDispatcher):
    """A helper that is compiled into each of its callers; Python cannot call it.

    options   Numba's
    A literal argument is taken as an integer or bool like any other: the optimiser sees its value
    in the caller, and one code serves them all.
    """

    def __init__(self, function, options):
        options = {"forceinline": True, **options}
        super().__init__(function, {}, options, pipeline_class=_InlinedCompiler)

    def get_call_template(self, args, kws):
        """What Numba asks for the types of a call."""
        args = [types.unliteral(one) for one in args]
        return super().get_call_template(args, {k: types.unliteral(v) for k, v in kws.items()})

    def __call__(self, *args, **kwargs):
        name = self.py_func.__qualname__
        raise TypeError(f"{name} is compiled into kernels; in Python, call {name}.py_func")
