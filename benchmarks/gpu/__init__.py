"""numbanet and its peers on the same GPU: PyTorch, and CuPy with kernels of cuBLAS.

    python -m benchmarks.gpu                    every line, every peer that is installed
    python -m benchmarks.gpu --lines 1,lenet5-128 --seconds 4 --rounds 7 --json gpu.json
    NUMBA_ENABLE_CUDASIM=1 python -m benchmarks.gpu --dry
                                                every line, tiny, numbanet alone, without a GPU

Run it from the root of a checkout, on a machine that does nothing else. PyTorch needs a build for
the GPU's driver; a peer that is missing is left out with a note. Without a GPU that can be used,
the program ends with numbanet's message and code 2.

How each side gets the same work (as in `benchmarks.peers`, whose lines, orders and checks these
are)
  start      numbanet draws the weights once; everybody begins with these, float32
  batches    the same order of samples for everybody, drawn on the CPU inside everybody's time
  data       whole, on the GPU, a step picks its batch by index; numbanet copies them there in every
             call of `fit`, which is inside its time. A prediction goes from the host's memory to
             the host's memory; "resident" stays on the GPU
  check      before anything is timed a contender takes a few steps, and its loss and weights are
             compared with those of numbanet on the CPU in float64. Who disagrees is named and gets
             no figure
  result     loss and accuracy (or R²) after one epoch from the start stand beside every time
  numbers    float32 throughout. PyTorch's "eager, tf32" rounds inputs of products to 11 bits; it is
             shown, and not compared with

How each side is measured
  variants   PyTorch: eager with the fused optimiser; "compiled", the whole step by torch.compile;
             "graph", the whole step as a CUDA graph. CuPy: forward, backward and update by hand,
             dense networks only
  rounds     A B C A B C …, in one process; before each turn the weights are set back. Warm-up and
             compilation come before
  time       `perf_counter` around whole epochs (numbanet) or pieces of an epoch, which end with the
             loss in the host's memory, so with the GPU at rest. Medians of all pieces, with
             quartiles
  shares     arithmetic of the forward, backward and gradient products over the GPU's float32 peak
             (multiprocessors · lanes · highest clock · 2); bytes that have to move, see
             `lines.traffic`, over what a copy on the GPU was measured to reach
  to 99 %    seconds from the start until the accuracy on the test set reaches 99 %, measured after
             every epoch; needs MNIST

Files: `lines` the lines as data · `gpu_facts` what the GPU can do · `with_*` one contender each,
`by_hand` the network of CuPy's ·
`measure` checks, rounds, the way to 99 % · `table` what is printed.
"""
