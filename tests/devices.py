"""A pretended GPU: tensors whose values lie on the host, which say that they lie on a device and refuse the host's.

It shows without a GPU what would fail there, or let the host wait. Within `with PretendedDevice() as gpu:` the device
`DEVICE` exists for PyTorch: factory functions, `.to`, autograd and autocast work. It follows CUDA's rules:

- An operation on tensors of the device and of the host raises, but for the host's scalars, shape (), in pointwise ones.
- An index may lie on the host. It is copied there, which waits.
- A random number is drawn with a generator of its own device.

`gpu.waits` lists where the host waited: values read back, results whose shape depends on values, and copies that are
not declared as `non_blocking`, or not from page-locked memory. `torch.empty(..., pin_memory=True)` and `pin_memory()`
return tensors that count as page-locked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
except ImportError:
    pytest.skip("this version of PyTorch takes no device that is written in Python", allow_module_level=True)

REPOSITORY = Path(__file__).parents[1]
OURS = ("commands", "demo", "evaluation", "inference", "pipeline", "serving", "shards", "trainer")
"""Folders whose lines are named where the host waits."""
_PATHS = tuple(f"{REPOSITORY / folder}/" for folder in OURS)
_NAME = "pretended"
_KEY = torch._C.DispatchKey.AutocastPrivateUse1
aten = torch.ops.aten

_READS = {
    aten._local_scalar_dense: "value",
    aten.equal: "value",
    aten.nonzero: "shape",
    aten.masked_select: "shape",
    aten._unique2: "shape",
    aten.unique_dim: "shape",
    aten.unique_consecutive: "shape",
    aten.bincount: "value",
    aten.histc: "value",
}
"""Operations of CUDA that copy a value, or the shape of their result, to the host."""
_INDEXING = (
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
    aten._unsafe_index_put,
)
_SCALARS = (aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_fill, aten.index_fill_, aten.where)
"""Operations beside the pointwise ones that take the host's scalars."""
_DRAWING = (aten.bernoulli, aten.bernoulli_, aten.uniform_, aten.normal_, aten.random_, aten.exponential_)
_LOWER = (
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "conv_transpose2d.input"),
    "scaled_dot_product_attention",
)
"""What CUDA's autocast computes in its low precision; `_HIGHER` in float32. Both lists hold what Sa2VA uses."""
_HIGHER = (
    "layer_norm",
    "group_norm",
    "softmax.int",
    "log_softmax.int",
    "sum",
    "sum.dim_IntList",
    "cumsum",
    "pow.Tensor_Scalar",
)


@dataclass(frozen=True)
class Wait:
    """A place where the host waited for the device."""

    kind: str
    """"value", "shape", "index" (from the host), "to device", or "to host"."""
    place: str
    """File and function, such as "trainer/agreement.py over_processes"; "" outside of `OURS`, as in a backward pass."""
    line: int
    phase: str
    """The value of `PretendedDevice.phase` then."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.place}, line {self.line}"


class DeviceTensor(Tensor):
    """A tensor of the pretended device."""

    host: Tensor
    """Its values."""

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        tensor: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        tensor.host = host
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func} on the pretended device outside of `with PretendedDevice()`")

    def tolist(self) -> Any:
        if PretendedDevice.active is not None:
            PretendedDevice.active.wait("value")
        return self.host.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"DeviceTensor({self.host!r})"


class _Backend:
    """The module of the device, which PyTorch asks about it. It is there only within `PretendedDevice`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return PretendedDevice.active is not None

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(self.is_available())

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return PretendedDevice.active is not None

    def has_primary_context(self, device_index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class PretendedDevice(TorchDispatchMode):
    """Lets the pretended device exist; see the top of this file."""

    active: PretendedDevice | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.phase = ""
        """Named in the waits from now on."""
        self._pinned: dict[int, Tensor] = {}

    def __enter__(self) -> PretendedDevice:
        PretendedDevice.active = self
        # Backward passes run in this thread: PyTorch starts a device's own one only before a process' first pass.
        self._one_thread = torch.autograd.set_multithreading_enabled(False)
        # `torch.tensor(..., device=)` makes a tensor on the host first: let it be copied where the copy is seen.
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # `Module.to` would replace parameters by others, as it does not with CUDA.
        self._swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        super().__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        torch.__future__.set_swap_module_params_on_conversion(self._swaps)
        self._one_thread.__exit__(*raised)  # type: ignore[arg-type]
        PretendedDevice.active = None

    def wait(self, kind: str) -> None:
        """Note that the host waits."""
        frame = _frame_of_ours(sys._getframe(1))
        place, line = "", 0
        if frame is not None:
            code = frame.f_code
            place = f"{Path(code.co_filename).relative_to(REPOSITORY).as_posix()} {code.co_name}"
            line = frame.f_lineno
        self.waits.append(Wait(kind, place, line, self.phase))

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor of the host counts as page-locked."""
        return tensor.untyped_storage().data_ptr() in self._pinned

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        if packet in (aten.is_pinned, aten._pin_memory):
            return self.is_pinned(args[0]) if packet is aten.is_pinned else self._pin(args[0].clone())
        pin = kwargs.pop("pin_memory", False)
        tensors: list[Tensor] = []
        values = _unwrapped(args, tensors)
        named = _unwrapped(kwargs, tensors)
        here = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, DeviceTensor)}
        asked = kwargs.get("device")
        to_device = asked is not None and torch.device(asked).type == _NAME
        if not here and not to_device:
            result = func(*args, **kwargs)
            return self._pin(result) if pin else result
        self._check(func, args, kwargs, tensors, bool(here), to_device)
        if to_device:
            named["device"] = torch.device("cpu")
        result = func(*values, **named)
        for host, tensor in zip([tensor.host for tensor in here.values()], here.values(), strict=True):
            assert tensor.shape == host.shape, f"{func} changes a shape in place"
        return _wrapped(result, here) if to_device or asked is None else result

    def _check(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
        here: bool,
        to_device: bool,
    ) -> None:
        """Note a wait of the operation; raise `RuntimeError` where CUDA would refuse it."""
        packet = func.overloadpacket
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != _NAME:
            raise RuntimeError(f"Expected a '{_NAME}' device type for generator but found '{generator.device.type}'")
        if packet in (aten._to_copy, aten.copy_):
            source, target = args[0], None
            if packet is aten.copy_:
                target, source = args[0], args[1]
            blocking = not (kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))
            self._check_copy(source, target, kwargs, blocking)
            return
        if (kind := _READS.get(packet)) and here:
            self.wait(kind)
        if packet in _INDEXING:
            self._check_index(func, args)
            return
        others = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if not others or not (here or to_device) or packet is aten._foreach_copy_:
            return
        mixes = torch.Tag.pointwise in func.tags or packet in _SCALARS
        written = func._schema.is_mutable and not isinstance(args[0], DeviceTensor)
        if written or not mixes or any(tensor.dim() for tensor in others):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in others)
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {_NAME}:0 and cpu {shapes}: {func}"
            )

    def _check_copy(self, source: Tensor, target: Tensor | None, kwargs: Mapping[str, Any], blocking: bool) -> None:
        from_device = isinstance(source, DeviceTensor)
        asked = kwargs.get("device")
        arrives = from_device if asked is None else torch.device(asked).type == _NAME
        if target is not None:
            arrives = isinstance(target, DeviceTensor)
        if from_device == arrives or not source.numel():
            return
        if from_device:
            if blocking or target is None or not self.is_pinned(target):
                self.wait("to host")
            return
        wanted = target.dtype if target is not None else kwargs.get("dtype") or source.dtype
        if blocking or wanted != source.dtype or not source.is_contiguous() or not self.is_pinned(source):
            self.wait("to device")

    def _check_index(self, func: Any, args: Sequence[Any]) -> None:
        """Indices may lie on the host where the indexed tensor does not; values must lie with it."""
        indexed, indices, *rest = args
        here = isinstance(indexed, DeviceTensor)
        for index in indices:
            if index is None:
                continue
            if not here and isinstance(index, DeviceTensor):
                raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu): {func}")
            if here and index.dtype in (torch.bool, torch.uint8):
                self.wait("shape")
            elif here and not isinstance(index, DeviceTensor):
                self.wait("index")
        values = [value for value in rest if isinstance(value, Tensor)]
        if any(isinstance(value, DeviceTensor) != here and (value.dim() or not here) for value in values):
            raise RuntimeError(f"index_put: values and the indexed tensor should be on the same device: {func}")

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no other tensor gets its address
        return tensor


def _unwrapped(value: Any, tensors: list[Tensor]) -> Any:
    """Return `value` with tensors of the host in place of the device's; put all tensors in it into `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.host if isinstance(value, DeviceTensor) else value
    if isinstance(value, list | tuple):
        return [_unwrapped(one, tensors) for one in value]
    if isinstance(value, dict):
        return {name: _unwrapped(one, tensors) for name, one in value.items()}
    return value


def _wrapped(result: Any, known: Mapping[int, DeviceTensor]) -> Any:
    """Return a result with tensors of the device in place of the host's: of one in `known`, by its id, the same."""
    if isinstance(result, Tensor):
        return known[id(result)] if id(result) in known else DeviceTensor(result)
    if isinstance(result, list | tuple):
        return type(result)(_wrapped(one, known) for one in result)
    return result


def _frame_of_ours(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame in `OURS`."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PATHS):
            return frame
        frame = frame.f_back
    return None


def _casting(name: str, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    """Return an operation that casts its floating arguments first, as autocast does."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")

    def cast(leaf: Any) -> Any:
        is_cast = isinstance(leaf, DeviceTensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
        return leaf.to(dtype()) if is_cast else leaf

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return call


def _register() -> Iterator[torch.library.Library]:
    """Make the device known to PyTorch, for the rest of the process; yield what must not be forgotten."""
    # A first backward pass, before PyTorch knows a device: else it would start a thread for it, and forbid to fork.
    torch.ones((), requires_grad=True).backward()
    _setup_privateuseone_for_python_backend(_NAME, _Backend(), _Hooks())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    yield everything
    some = torch.library.Library("aten", "IMPL")
    for name in _LOWER:
        some.impl(name, _casting(name, lambda: torch.get_autocast_dtype(_NAME)), "AutocastPrivateUse1")
    for name in _HIGHER:
        some.impl(name, _casting(name, lambda: torch.float32), "AutocastPrivateUse1")
    yield some


_LIBRARIES: list[torch.library.Library] = []
DEVICE = torch.device("cpu")


def register() -> torch.device:
    """Return the pretended device, which PyTorch knows from the first call on."""
    global DEVICE
    if not _LIBRARIES:
        _LIBRARIES.extend(_register())
        DEVICE = torch.device(_NAME, 0)
    return DEVICE


@pytest.fixture(name="gpu")
def pretended_gpu() -> Iterator[PretendedDevice]:
    """The pretended device, which exists until the test's end."""
    register()
    with PretendedDevice() as gpu:
        yield gpu
