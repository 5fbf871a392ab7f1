"""Evaluation is tested with the model that prediction is tested with."""

from tests.inference.conftest import talker  # noqa: F401 (a fixture)
from tests.models import composed_once  # noqa: F401 (a fixture)
