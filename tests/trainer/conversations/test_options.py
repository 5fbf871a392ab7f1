"""What conversations a training makes of samples."""

import pytest

from shards.errors import UserError
from trainer.conversations.options import ConversationOptions


def test_negatives_need_an_answer():
    with pytest.raises(UserError, match=r"negatives have no answer; met negatives 0[.]1, no_target left_out"):
        ConversationOptions(negatives=0.1, no_target="left_out")
