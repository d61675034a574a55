"""scikit-learn's door: numbanet's networks as its estimators.

    from numbanet.sklearn import MLPClassifier

MLPClassifier and MLPRegressor have the parameters and fitted attributes of scikit-learn's classes
of these names; NetworkClassifier and NetworkRegressor train any layers; PopulationSearchCV searches
for the best parameters. scikit-learn is imported with this module, and not with numbanet:
pip install numbanet[sklearn].
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "numbanet.sklearn needs scikit-learn; pip install numbanet[sklearn]"
    ) from error

from numbanet.sklearn.mlp import MLPClassifier, MLPRegressor
from numbanet.sklearn.network import NetworkClassifier, NetworkRegressor
from numbanet.sklearn.search import PopulationSearchCV

__all__ = [
    "MLPClassifier",
    "MLPRegressor",
    "NetworkClassifier",
    "NetworkRegressor",
    "PopulationSearchCV",
]
