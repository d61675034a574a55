"""The estimators: scikit-learn's own checks, and the same results as scikit-learn's classes."""

import pytest

pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from numbanet.sklearn import MLPClassifier, MLPRegressor

ESTIMATORS = [MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_has_nothing_to_object_to(estimator, check):
    check(estimator)
