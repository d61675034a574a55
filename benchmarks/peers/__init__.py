"""numbanet beside its peers: PyTorch, JAX, scikit-learn and ONNX Runtime, on one CPU, in one run.

    python -m benchmarks.peers                  every line, every peer that is installed
    python -m benchmarks.peers --lines 1,4,lenet5-128 --peers pytorch,jax --seconds 4
    python -m benchmarks.peers --json peers.json --plot peers.png
    python -m benchmarks.peers --isa avx2       every contender held to AVX2
    python -m benchmarks.peers --readme peers.json                   README's table, from that file

Run it from the root of a checkout, on a machine that does nothing else. `pip install
numbanet[peers]` brings the peers; one that is missing is left out with a note. A line is printed
when it is done. Ctrl-C ends with what there is, and exit status 130.

How each side gets the same work
  start      numbanet draws the weights once; everybody begins with these, float32
  batches    `work.order(seed, epoch, samples)` cut into batches, the same for everybody; drawing it
             is inside everybody's time. The samples of a line are a multiple of its batch.
             scikit-learn shuffles by itself while it is timed
  data       whole, in memory, in the framework's own arrays; a step picks its batch by index. No
             loader, no disk
  check      before anything is timed, a contender takes a few steps and its loss and weights are
             compared with those of numbanet in float64; for predictions, the outputs are. Who
             disagrees is named and gets no figure
  accuracy   after one epoch from the start, beside the time: a fast wrong network would look bad.
             One evaluator for all

How each side is measured at its best
  variants   every way worth trying (PyTorch eager, compiled, whole step compiled; JAX's own
             convolution, shifted images …), each at every thread count; the best median counts, and
             the table names it
  processes  one for each peer, variant and number of threads, so that thread settings are clean.
             All but the one that is asked are stopped, so a waiting thread takes nothing from the
             others
  rounds     A B C A B C …: what disturbs the machine disturbs all. Before each turn the weights are
             set back, so nobody is timed on a network that has long learned everything
  peak       the FMA peak of one thread and of all, immediately before and after every turn. Where
             all threads together have less than 0.85 of so many cores, as on a virtual machine
             whose cores are shared, the turn is repeated, twice at most, and the one of the highest
             peak counts. The table has the ratio of the peaks, the JSON that of every turn
  time       `perf_counter` inside the process, around a piece of work that was run once before; a
             training figure is the time of such a piece over its steps. For numbanet and
             scikit-learn that is a whole call of `fit` of some epochs, with its checks of the data;
             for PyTorch a loop over steps, for JAX one `lax.scan` (an epoch, less where that takes
             seconds), both on data that lie ready in their own arrays. Beside it stands what
             numbanet's epochs alone took, by the history that fit returns, which is the closer
             comparison with these two. A prediction is a call from Python, arrays or tensors in
             memory to outputs

Files: `work` the lines as data · `with_*` one contender each · `worker` the process around a
contender · `rounds` asks them in turn · `report` table and plot · `peak` what the processor could
do at most.
"""
