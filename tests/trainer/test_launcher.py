"""The command that started a run, as it was typed: through launchers as they are, and through none."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.launcher import typed_command

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import os, sys
from trainer.launcher import typed_command
if os.environ.get("RANK", "0") == "0":
    print("typed:", typed_command(sys.argv[1:], 3))
"""
ARGUMENTS = ["demo.yaml", "data.shards=[a,b]", "output_dir=runs/it's mine"]
FALLBACK = ["accelerate", "launch", "--num_processes", "3", "trainer/train.py"]
CONFIGURATION = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\nuse_cpu: true\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def typed(*line: object, **environment: str) -> list[str]:
    """Run a command line, and return what its script takes for the line, as words."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*map(str, line)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": programs, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [printed] = [line for line in done.stdout.splitlines() if line.startswith("typed:")]
    return shlex.split(printed)[1:]


@pytest.mark.slow
def test_accelerate_with_a_configuration_file(script: Path):
    """Two processes on a CPU: Accelerate starts one, whose line is complete all the same."""
    (script.parent / "launch.yaml").write_text(CONFIGURATION)
    line = ["accelerate", "launch", "--config_file", script.parent / "launch.yaml", "--num_processes", 2]
    line += ["--num_cpu_threads_per_process", 2, script, *ARGUMENTS]
    assert typed(*line) == [*map(str, line)]


@pytest.mark.slow
def test_torchrun(script: Path):
    line = ["torchrun", "--nproc_per_node", "2", str(script), *ARGUMENTS]
    assert typed(*line) == line


@pytest.mark.parametrize("arguments", [ARGUMENTS, []])
def test_plain_python(script: Path, arguments: list[str]):
    line = [sys.executable, str(script), *arguments]
    assert typed(*line) == line


def test_a_shell_script_that_passes_its_arguments_on_is_what_was_typed(script: Path):
    wrapper = script.parent / "train.sh"
    wrapper.write_text(f'{shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\ntrue\n')
    line = ["bash", str(wrapper), *ARGUMENTS]
    assert typed(*line) == line


def test_srun_is_no_ancestor_of_its_tasks(script: Path):
    line = [sys.executable, str(script), *ARGUMENTS]
    assert typed(*line, SLURM_STEP_NUM_TASKS="4") == ["srun", "--ntasks=4", *line]


def test_a_launcher_that_is_not_found_is_replaced(script: Path):
    """As where another machine's launcher started this process through a remote shell."""
    line = [sys.executable, str(script), *ARGUMENTS]
    assert typed(*line, ACCELERATE_MIXED_PRECISION="no") == [*FALLBACK, *ARGUMENTS]


def test_a_program_that_calls_the_trainer_is_no_launcher():
    assert shlex.split(typed_command(ARGUMENTS, 3)) == [*FALLBACK, *ARGUMENTS]
