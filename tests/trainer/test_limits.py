"""Every value of the configuration is bounded: what is out of range is one line with the key, never a traceback."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from shards.errors import UserError
from tests.batches import make_loader
from trainer.config import Config, fields, flat, load_config
from trainer.limits import Bound

HOSTILE = ("nan", "inf", "-1", str(2**63), "")
ODD = ("-inf", "9" * 5000, "1e400", "null", "[]", "{}", "[[]]", "[nan]", "''", '"a\\0b"', '"\\ud800"', "x" * 5000)
ODD += ("${oc.env:NOT_SET_ANYWHERE}", "${seed}", "${", "???", "[" * 300, "[null]", "{a: {b: 1}}", "{a: []}", "{1: 2}")
KINDS = ("seed", "lr", "mixed_precision", "model.path", "data.shards", "betas", "mix", "data.sources", "project")
EVERY = [*flat(Config()), "rates.lora", "rates.a.b", "mix.dual.weight", "data.sources.sav"]


@pytest.mark.parametrize(("keys", "values"), [(EVERY, HOSTILE), (KINDS, ODD)])
def test_an_extreme_value_of_any_key_is_one_line_or_valid(keys: list[str], values: tuple[str, ...]):
    for argument in (f"{key}={value}" for key in keys for value in values):
        try:
            config = load_config([argument])
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2500, argument
            assert argument.split("=")[0].split(".")[0] in str(error), (argument, str(error))
        else:
            for name, number in flat(config).items():
                if isinstance(number, int | float) and not isinstance(number, bool):
                    assert 0 <= number <= 3e38, (argument, name, number)
                assert number != "" and "\0" not in str(number), (argument, name)


def numbers(hint: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Metadata of each int and float in a type: {"rates": dict[str, Annotated[float, X]]} has (X,)."""
    if hint in (int, float):
        yield metadata
    elif get_origin(hint) is Annotated:
        yield from numbers(get_args(hint)[0], get_args(hint)[1:])
    else:
        for part in get_args(hint):
            yield from numbers(part)


def test_every_number_has_two_bounds_with_a_reason_and_its_default_lies_within():
    values = flat(Config())
    count = 0
    for key, info in fields():
        for metadata in numbers(info.annotation, tuple(info.metadata)):
            count += 1
            bound = next(part for part in metadata if isinstance(part, Bound))
            assert bound.reason or (bound.low, bound.high) == (0, 1), key
            for beyond in (bound.high * 1.001 + 1, -1e-9, float("nan"), float("inf")):
                assert not bound.holds(beyond), (key, beyond)
            if isinstance(value := values.get(key), int | float):
                assert bound.holds(value), key
    assert count > 40


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed=-1", "seed: out of range; met -1; wanted >= 0"),
        ("seed=18446744073709551616", "wanted <= 2.14748e+09: numpy takes 32 bits"),
        ("lr=.inf", "lr: out of range; met inf; wanted <= 3e+38: it is infinite in float32"),
        ("betas=[0.9,2]", "betas[1]: out of range; met 2"),
        ("mix={dual: {weight: .nan}}", "mix.dual.weight: out of range; met nan"),
        ("caption_temperature=1e-9", "wanted >= 0.001, or 0"),
        ("num_points=1000000000", "a mask has no more pixels"),
        ("lora.r=100000000", "lora.r: out of range"),
        ("model.path=", "model.path: empty value"),
        ("model.path= ", "model.path: empty value"),
        ('output_dir=" "', "output_dir: empty value"),
        ("data.shards=[a,]", None),
        ("data.shards=['']", "data.shards[0]: empty value"),
        ('data.shards=["a\\0b"]', "data.shards[0]: a NUL character"),
        (f"output_dir={'x' * 256}", "output_dir: too long; met 256 bytes"),
        ("output_dir=${oc.env:NOT_SET_ANYWHERE}", "output_dir: cannot be resolved"),
        ("seed=${seed}", "cannot be resolved"),
        ("data.cache_limit=" + "9" * 400 + "GB", "data.cache_limit: not a size"),
    ],
)
def test_a_value_out_of_range_is_reported_with_key_and_reason(argument: str, message: str | None):
    if message is None:
        assert load_config([argument]).data.shards == ["a"]
        return
    with pytest.raises(UserError) as raised:
        load_config([argument])
    assert message in str(raised.value)


def test_batches_that_cannot_fit_are_refused(sav_set: Path):
    fields = ("g_pixel_values1", "masks1")
    with pytest.raises(UserError, match=r"batches take more memory than there is; met .* GB; wanted .*data.prefetch"):
        make_loader([sav_set], fields=fields, batch_size=4, seed=0, prefetch=1000, objects_per_sample=4096)


def test_too_few_samples_name_the_objective_and_what_to_set(sav_set: Path):
    options = {"fields": ("masks1",), "batch_size": 12, "seed": 0, "holdout": 0.3, "purpose": "mix.segment"}
    with pytest.raises(UserError, match=r"^mix.segment, .*too few samples in the train part; .*lower batch_size"):
        make_loader([sav_set], **options, sources=["sav"])
    with pytest.raises(UserError, match=r"^mix.segment, .*holdout part; .*raise data.holdout, .* data.holdout=0$"):
        make_loader([sav_set], **{**options, "holdout": 0.0}, part="holdout")
