"""What the tests of SFT and RL train on."""

from tests.training.rl.conftest import checkpoint, language, params, problems, serve, validation  # noqa: F401
from tests.training.sft.conftest import data, make_params  # noqa: F401
