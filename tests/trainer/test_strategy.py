"""The launch files as Accelerate itself reads them, and what is refused because a strategy does not support it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

from shards.errors import UserError
from tests.trainer.runs import environment_of
from trainer import fsdp, zero
from trainer.config import Config, load_config


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Set the environment of a launch file, and build the accelerator that Accelerate would build on GPUs."""

    def launch(file: str, *flags: str) -> SimpleNamespace:
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
            monkeypatch.delenv(name)
        for name, value in environment_of(file, *flags).items():
            monkeypatch.setenv(name, value)
        if zero.is_requested():
            plugin = DeepSpeedPlugin()
            kind = DistributedType.DEEPSPEED
            return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=plugin))
        shared = os.environ.get("ACCELERATE_USE_FSDP") == "true"
        plugin = FullyShardedDataParallelPlugin()
        kind = DistributedType.FSDP if shared else DistributedType.MULTI_GPU
        return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(fsdp_plugin=plugin))

    return launch


def test_ddp_is_neither_fsdp_nor_deepspeed(launched):
    accelerator = launched("ddp.yaml")
    before = vars(accelerator.state.fsdp_plugin).copy()
    fsdp.set_up(accelerator, Config())
    zero.set_up(accelerator, Config())
    assert vars(accelerator.state.fsdp_plugin) == before and os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


def test_fsdp_leaves_dtypes_to_the_run(launched):
    accelerator = launched("fsdp2.yaml")
    plugin = accelerator.state.fsdp_plugin
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    fsdp.set_up(accelerator, Config())
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)


@pytest.mark.parametrize(
    ("flags", "arguments", "message"),
    [
        (["--fsdp_cpu_ram_efficient_loading", "true"], [], "fsdp_cpu_ram_efficient_loading"),
        (["--fsdp_offload_params", "true"], [], "fsdp_offload_params"),
        (["--fsdp_activation_checkpointing", "true"], [], "fsdp_activation_checkpointing"),
        (["--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"], [], "by size"),
        (["--dynamo_backend", "inductor"], [], "dynamo_backend"),
        ([], ["mix={dual:{},reverse:{}}", "project=true"], "project: sharded gradients"),
        ([], ["optimizer=adamw8bit"], "optimizer: does not go with"),
        ([], ["compile=true"], "compile: does not go with"),
    ],
)
def test_what_fsdp_does_not_support_is_one_line(launched, flags, arguments, message):
    accelerator = launched("fsdp2.yaml", *flags)
    with pytest.raises(UserError, match=message):
        fsdp.set_up(accelerator, load_config(arguments))


def test_deepspeed_takes_batch_accumulation_and_clipping_from_the_run(launched):
    accelerator = launched("zero2.yaml")
    zero.set_up(accelerator, load_config(["batch_size=3", "accumulation=5", "clip=0.7"]))
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["train_micro_batch_size_per_gpu"] == 3 and settings["gradient_accumulation_steps"] == 5
    assert settings["gradient_clipping"] == 0.7
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert settings.get("bf16", {}).get("enabled") is not True  # weights that train stay float32


@pytest.mark.parametrize(
    ("flags", "arguments", "message"),
    [
        (["--zero_stage", "3"], [], "zero_stage 3"),
        (["--offload_optimizer_device", "cpu"], [], "offloading"),
        ([], ["mix={dual:{},reverse:{}}", "project=true"], "project: does not go with"),
        ([], ["optimizer=adamw8bit"], "optimizer: does not go with"),
    ],
)
def test_what_deepspeed_does_not_support_is_one_line(launched, flags, arguments, message):
    accelerator = launched("zero2.yaml", *flags)
    with pytest.raises(UserError, match=message):
        zero.set_up(accelerator, load_config(arguments))
