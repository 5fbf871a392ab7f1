"""A checkpoint holds everything that changes in a run, as named tensors and JSON, and is read strictly."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR

from shards.errors import UserError
from shards.recipe import RECIPES
from trainer.checkpoints.checkpoint import Parts, State, nbytes, read_random_states, read_state, write
from trainer.checksums import CHECKSUMS, check_checkpoint
from trainer.trained import Origin, load_trained


@pytest.fixture
def make(make_loop, config):
    """Make `Parts` after some steps with made-up gradients."""

    def parts(steps: int) -> Parts:
        loop = make_loop()
        trainable = [p for p in loop.parameters() if p.requires_grad]
        half = len(trainable) // 2
        new = {name.replace(".base_layer", "") for name in loop.model.state_dict()}
        optimizer = torch.optim.AdamW([{"params": trainable[half:]}, {"params": trainable[:half], "lr": 1e-2}], lr=1e-3)
        parts = Parts(loop, new, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step)))
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            for parameter in trainable:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            loop.teacher.update()
            parts.scheduler.step()
        return parts

    return parts


@pytest.fixture
def written(make, config, tmp_path: Path) -> tuple[Parts, Path]:
    parts = make(3)
    position = {"dual": {"epoch": 1, "samples": 4}}
    state = State(3, position, 2, 0.5, parts.scheduler.state_dict(), {"lr": 1e-3}, ["sav"])
    write(tmp_path, parts.tensors(), state, Origin.of(config, 3, RECIPES["default"], ["sav"]), [{"torch": "00"}])
    return parts, tmp_path


def test_loading_restores_everything_that_changes_in_a_run(make, written):
    parts, folder = written
    other = make(0)
    other.read(folder)
    assert all(map(torch.equal, parts.module.state_dict().values(), other.module.state_dict().values()))
    shadows = parts.module.teacher.shadow, other.module.teacher.shadow
    assert all(torch.equal(shadows[0][name], shadows[1][name]) for name in shadows[0])
    assert not all(map(torch.equal, shadows[0].values(), dict(parts.module.teacher._student).values()))
    one, two = (p.optimizer.state_dict() for p in (parts, other))
    assert one["param_groups"] == two["param_groups"] and one["state"].keys() == two["state"].keys()
    for index, moments in one["state"].items():
        assert all(torch.equal(moments[kind], two["state"][index][kind]) for kind in ("step", "exp_avg", "exp_avg_sq"))
    assert parts.scheduler.state_dict() == other.scheduler.state_dict()
    assert read_state(folder).position == {"dual": {"epoch": 1, "samples": 4}}
    assert read_random_states(folder) == ({"torch": "00"},)


def test_a_checkpoint_can_be_exported_and_holds_only_tensors_and_json(written):
    parts, folder = written
    trained, origin = load_trained(folder)
    assert origin.step == 3
    assert all(map(torch.equal, trained.model.state_dict().values(), parts.module.model.state_dict().values()))
    sizes = 0
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            sizes += sum(tensor.nbytes for tensor in load_file(path).values())
        else:
            json.loads(path.read_text())
    assert sizes == nbytes(parts.tensors())


@pytest.mark.parametrize("name", ["teacher", "trained"])
def test_a_missing_tensor_is_an_error(make, written, name: str):
    path = written[1] / f"{name}.safetensors"
    tensors = load_file(path)
    tensors.pop(first := next(key for key in tensors if "lora" in key))
    save_file(tensors, path)
    with pytest.raises(
        UserError, match=rf"{name}.safetensors: the tensors are not this model's; met 1 missing: {first}"
    ):
        make(0).read(written[1])


def test_moments_of_another_optimiser_are_an_error(make, written):
    path = written[1] / "optimizer.safetensors"
    save_file({"model.unknown.weight:exp_avg": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"are not this optimiser's; met model\.unknown\.weight:exp_avg"):
        make(0).read(written[1])


def test_a_flipped_bit_of_any_file_is_found(written):
    """Weights, teacher, moments, state, random states, origin, and the list of checksums itself."""
    _, folder = written
    check_checkpoint(folder)
    draws = random.Random(5)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(40):
            changed = bytearray(whole)
            bit = draws.randrange(8 * len(whole))
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            if path.name == CHECKSUMS and json_or_none(changed) == json.loads(whole):
                continue  # a space that is now a tab
            with pytest.raises(UserError, match=f"{path.name}: not ") as raised:
                check_checkpoint(folder)
            assert "\n" not in str(raised.value) and "take another copy" in str(raised.value)
            if path.name in ("trained.safetensors", "origin.json"):
                with pytest.raises(UserError, match="not the bytes that were written"):
                    load_trained(folder)
        path.write_bytes(whole)
    assert load_trained(folder)[1].step == 3


def json_or_none(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


@pytest.mark.parametrize("name", ["teacher.safetensors", "rng.json"])
def test_a_missing_file_is_named(written, name: str):
    (written[1] / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file; wanted as {CHECKSUMS} says"):
        check_checkpoint(written[1])
    load_trained(written[1])  # an export does not read it


def test_a_checkpoint_of_an_earlier_release_is_read_with_a_warning(written, caplog):
    (written[1] / CHECKSUMS).unlink()
    assert load_trained(written[1])[1].step == 3
    (message,) = [record.getMessage() for record in caplog.records if CHECKSUMS in record.getMessage()]
    assert "taken unchecked" in message and str(written[1]) in message


def test_another_version_is_refused(written):
    path = written[1] / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 7}))
    with pytest.raises(UserError, match="another version of checkpoint"):
        read_state(written[1])
