"""PopulationSearchCV: a search over parameters whose fits run at once, in threads of one process.

    candidates × folds:   thread 0   fit, score ──► fit, score ──► …      one X and y for all,
                          thread 1   fit ────► fit, score ──► …           a fit has one thread

Training releases Python's lock while it computes, so threads do as much as processes do, and none
has to be started, to load compiled code or to be sent the data. What a training gives does not
depend on threads, so that the scores are those of GridSearchCV, bit for bit.
"""

import ctypes
import threading
import time
import warnings
from typing import ClassVar

import numba
import numpy as np
from joblib import parallel_config
from joblib.parallel import ThreadingBackend
from sklearn.model_selection import ParameterGrid, ParameterSampler
from sklearn.model_selection._search import BaseSearchCV

from numbanet.backend.threads import max_threads
from numbanet.sklearn.base import THREADS


class PopulationSearchCV(BaseSearchCV):
    """The best of many sets of parameters by cross-validation, with the fits side by side.

    The interface is that of scikit-learn's GridSearchCV: scoring, refit, cv, verbose, error_score
    and return_train_score mean the same, and so do `cv_results_`, `best_estimator_` and the other
    fitted attributes.

    estimator    any estimator; those of numbanet, alone or as the last step of a Pipeline, are what
                 it is for
    param_grid   a grid as GridSearchCV takes it: a dict of lists by name, or a list of such; or a
                 ParameterSampler
    threads      fits at once, each of which has one thread unless its estimator asks for more; by
                 default Numba's number
    """

    _parameter_constraints: ClassVar[dict] = {
        **BaseSearchCV._parameter_constraints,
        "param_grid": [dict, list, ParameterSampler],
        "threads": THREADS,
    }

    def __init__(
        self,
        estimator,
        param_grid,
        *,
        scoring=None,
        refit=True,
        cv=None,
        verbose=0,
        error_score=np.nan,
        return_train_score=False,
        threads=None,
    ):
        super().__init__(
            estimator=estimator,
            scoring=scoring,
            refit=refit,
            cv=cv,
            verbose=verbose,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.param_grid = param_grid
        self.threads = threads

    def fit(self, X, y=None, **params):
        """Fit and score every candidate on every fold, then the best one on all data.

        X, y     (samples, …) and (samples,) or (samples, n_outputs)
        params   for the estimator's fit, the splitter and the scorer, as GridSearchCV takes them
        Raises ValueError where no fit succeeds, or any with error_score="raise".
        """
        self._validate_params()
        before = numba.get_num_threads()
        threads = min(self.threads or before, max_threads())
        numba.set_num_threads(threads)
        backend = _SingleThreads()
        try:
            # Tasks in threads leave filters of warnings behind in any order.
            with warnings.catch_warnings(), parallel_config(backend, n_jobs=threads):
                return super().fit(X, y, **params)
        except BaseException:
            backend.interrupt()
            raise
        finally:
            numba.set_num_threads(before)

    def _run_search(self, evaluate_candidates):
        grid = self.param_grid
        evaluate_candidates(grid if isinstance(grid, ParameterSampler) else ParameterGrid(grid))


class _SingleThreads(ThreadingBackend):
    """joblib's threads, in each of which Numba has one.

    They are interrupted together: each hears of it as the main thread hears of Ctrl-C.
    """

    WAIT_SECONDS = 2.0
    """How long an interrupted search waits for its fits; those in native code end later."""

    def __init__(self, **options):
        super().__init__(**options)
        self.lock, self.running, self.interrupted = threading.Lock(), set(), False

    def submit(self, func, callback=None):
        def run():
            thread = threading.get_ident()
            try:
                with self.lock:
                    if self.interrupted:
                        raise RuntimeError("the search was interrupted")
                    self.running.add(thread)
                try:
                    numba.set_num_threads(1)
                    return func()
                finally:
                    with self.lock:
                        self.running.discard(thread)
            except KeyboardInterrupt:  # the pool hands on Exceptions alone
                raise RuntimeError("the search was interrupted") from None

        return super().submit(run, callback)

    def interrupt(self) -> None:
        """End all fits, and begin none of those that wait; return when they have ended."""
        end = time.monotonic() + self.WAIT_SECONDS
        self.interrupted = True
        while True:
            with self.lock:
                for thread in self.running:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
                    )
                if not self.running or time.monotonic() > end:
                    return
            time.sleep(0.05)
