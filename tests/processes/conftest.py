"""What the tests of SFT and RL train on."""

from tests.rl.conftest import checkpoint, language, params, problems, serve, validation  # noqa: F401
from tests.sft.conftest import data, make_params  # noqa: F401
