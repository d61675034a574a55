"""What goes on inside a network: measurements as plain data, and the doctor; see docs/insight.md.

    print(network.diagnose(x, y))
    speed = diagnostics.LearningSpeed(x, y)
    network.fit(x, y, epochs=20, callbacks=speed)
    plotting.learning_speed(speed)

No function changes the network that it is given. All results hold NumPy arrays; `plotting` draws
them.
"""

from numbanet.network.insight.activity import (
    Activities,
    Activity,
    Distribution,
    activations,
    weights,
)
from numbanet.network.insight.calibration import Calibration, calibration
from numbanet.network.insight.doctor import Diagnosis, Finding
from numbanet.network.insight.excitation import Excitation, excite
from numbanet.network.insight.importance import Importance, importance
from numbanet.network.insight.initialization import InitializationEffect, initializations
from numbanet.network.insight.learning import (
    LearningCurve,
    LearningSpeed,
    Speeds,
    learning_curve,
    speeds,
)
from numbanet.network.insight.pruning import Comparison, compare, prune

__all__ = [
    "Activities",
    "Activity",
    "Calibration",
    "Comparison",
    "Diagnosis",
    "Distribution",
    "Excitation",
    "Finding",
    "Importance",
    "InitializationEffect",
    "LearningCurve",
    "LearningSpeed",
    "Speeds",
    "activations",
    "calibration",
    "compare",
    "excite",
    "importance",
    "initializations",
    "learning_curve",
    "prune",
    "speeds",
    "weights",
]
