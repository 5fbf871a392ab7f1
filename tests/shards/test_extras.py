"""A missing package ends in one line that names the extra to install; a missing module of ours is a bug."""

import pytest

from shards.errors import UserError
from shards.extras import extra, require


def test_a_failed_import_names_the_extra():
    line = "^--x: a package is missing; met No module named 'no_such'; pip install \"sa2va-shards\\[ray\\]\", or y=z$"
    with pytest.raises(UserError, match=line), extra("ray", "--x", instead="y=z"):
        import no_such  # noqa: F401


def test_a_decorated_function_keeps_its_signature_and_result():
    @extra("train")
    def double(number: int) -> int:
        return 2 * number

    assert double(number=2) == 4 and double.__annotations__ == {"number": int, "return": int}


def test_a_missing_module_of_ours_is_no_users_mistake():
    with pytest.raises(ModuleNotFoundError), extra("train"):
        import shards.no_such  # noqa: F401


def test_modules_are_looked_for_without_an_import():
    require("deploy", "json", "numpy")
    with pytest.raises(UserError, match=r"a package is missing; met no no_such and no nor_this; pip install"):
        require("deploy", "json", "no_such", "nor_this")
