"""The only folder that speaks LLVM: Numba intrinsics, a few instructions for each call.

`bound`             compiled functions bound to data
`pointers`          pointers into flat memories, prefetching, calls by address, bits
`vectors`           one vector register as a value
`elementwise`       the steps of elementary functions, for a scalar or a vector
`gemm` `transpose`  the matrix product and the transpose
`random`            counter-based random numbers
`barrier`           atomic counters, and the barrier made of them
`clock`             ticks of the processor's clock
`process`           which process this is
`affinity`          on which CPU a thread runs
`cuda_threads`      the threads of a GPU
`target`            the width of the CPU's vectors
"""

from numbanet.backend.intrinsics.bound import BoundFunction, bind
from numbanet.backend.intrinsics.cuda_threads import (
    block_in_group,
    blocks_per_group,
    div_u32,
    group_index,
    num_groups,
    num_threads,
    shared_array,
    syncthreads,
    thread_in_block,
    thread_rank,
)
from numbanet.backend.intrinsics.elementwise import (
    concat_even,
    const_like,
    exp2_of_bits,
    exponent,
    interleave_low,
    is_float32,
    mantissa,
    odd_mask,
    splat,
    swap_pairs,
    where_equal,
    where_greater,
)
from numbanet.backend.intrinsics.gemm import (
    brgemm,
    brgemm_bias,
    brgemm_nt,
    brgemm_tn,
    gemm,
    gemm_bias,
    gemm_nt,
    gemm_tn,
)
from numbanet.backend.intrinsics.pointers import (
    address,
    as_pointer,
    call_indirect,
    checked_pointer,
    data_pointer,
    float_attr,
    holds_integers,
    lanes,
    local_array,
    next_word,
    ptr_add,
    set_float_attr,
    stack_array,
)
from numbanet.backend.intrinsics.process import PROCESS_TOKEN, process_token
from numbanet.backend.intrinsics.random import fold_in, philox, uniform, uniform_scalar
from numbanet.backend.intrinsics.target import CACHE_LINE, VECTOR_BYTES
from numbanet.backend.intrinsics.transpose import transpose
from numbanet.backend.intrinsics.vectors import load, load_or, reduce_sum, store

__all__ = [
    "CACHE_LINE",
    "PROCESS_TOKEN",
    "VECTOR_BYTES",
    "BoundFunction",
    "address",
    "as_pointer",
    "bind",
    "block_in_group",
    "blocks_per_group",
    "brgemm",
    "brgemm_bias",
    "brgemm_nt",
    "brgemm_tn",
    "call_indirect",
    "checked_pointer",
    "concat_even",
    "const_like",
    "data_pointer",
    "div_u32",
    "exp2_of_bits",
    "exponent",
    "float_attr",
    "fold_in",
    "gemm",
    "gemm_bias",
    "gemm_nt",
    "gemm_tn",
    "group_index",
    "holds_integers",
    "interleave_low",
    "is_float32",
    "lanes",
    "load",
    "load_or",
    "local_array",
    "mantissa",
    "next_word",
    "num_groups",
    "num_threads",
    "odd_mask",
    "philox",
    "process_token",
    "ptr_add",
    "reduce_sum",
    "set_float_attr",
    "shared_array",
    "splat",
    "stack_array",
    "store",
    "swap_pairs",
    "syncthreads",
    "thread_in_block",
    "thread_rank",
    "transpose",
    "uniform",
    "uniform_scalar",
    "where_equal",
    "where_greater",
]
