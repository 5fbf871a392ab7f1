import pytest

from demo.make_model import make
from demo.make_sav import SCENES
from trainer.model.sa2va import Sa2VA
from trainer.released.folder import load_model, save_model

NAMES = [thing for things in SCENES.values() for thing in things]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Sa2VA:
    """The demo's model, written and read again."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    save_model(make(NAMES), folder)
    return load_model(folder).model
