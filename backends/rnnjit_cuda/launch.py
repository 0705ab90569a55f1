"""Starting kernels: on a GPU through its driver, or in numba's simulator.

Arguments are tensors, whose memory the caller keeps alive, and integers. Nothing waits for the
device: a launch goes to torch's current stream.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.runtime.torch_private import current_cuda_stream
from rnnjit_cuda import compiler
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.kernels import KernelKey

Argument = Tensor | int


class Shape(NamedTuple):
    """The extent of a launch.

    Attributes:
        grid: blocks in x, y and z.
        threads: in each block.
        shared: bytes of dynamic shared memory of each block.
        cooperative: whether all blocks must run at once, since they wait for each other.
    """

    grid: tuple[int, int, int]
    threads: int
    shared: int = 0
    cooperative: bool = False


class Launcher(ABC):
    """Starts kernels on one device.

    Attributes:
        properties: of the device.
    """

    properties: DeviceProperties

    @abstractmethod
    def __call__(self, key: KernelKey, shape: Shape, arguments: Sequence[Argument]) -> None:
        """Start a kernel on torch's current stream."""


class _Loaded(NamedTuple):
    """A kernel on a device.

    Attributes:
        kernel: the driver's kernel.
        function: the same in the device's context.
        shared: bytes of dynamic shared memory that it may use.
    """

    kernel: Any
    function: Any
    shared: int


class DriverLauncher(Launcher):
    """Starts kernels on a CUDA device, by its driver.

    Args:
        index: torch's number of the device.
    """

    def __init__(self, index: int) -> None:
        found = torch.cuda.get_device_properties(index)
        self.properties = DeviceProperties(
            (found.major, found.minor),
            found.multi_processor_count,
            found.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # missing from the stub
            found.shared_memory_per_multiprocessor,
            found.max_threads_per_multi_processor,
        )
        self._index = index
        self._loaded: dict[KernelKey, _Loaded] = {}
        self._threads = threading.local()

    def __call__(self, key: KernelKey, shape: Shape, arguments: Sequence[Argument]) -> None:
        """Start a kernel on torch's current stream of the device."""
        from cuda.bindings import driver

        if not hasattr(self._threads, "known"):
            self._enter()
        loaded = self._loaded.get(key)
        if loaded is None or loaded.shared < shape.shared:
            self._loaded[key] = loaded = self._load(key, shape.shared, loaded)
        function = loaded.function
        values = array("q", [a if isinstance(a, int) else a.data_ptr() for a in arguments])
        first, count = values.buffer_info()
        addresses = array("Q", range(first, first + 8 * count, 8))
        stream = current_cuda_stream(self._index)
        extent = (*shape.grid, shape.threads, 1, 1, shape.shared, stream)
        where = addresses.buffer_info()[0]
        # Checking the current device costs less than switching, which is seldom needed.
        here = torch.cuda.current_device() == self._index
        with nullcontext() if here else torch.cuda.device(self._index):
            if shape.cooperative:
                _checked(driver.cuLaunchCooperativeKernel(function, *extent, where))
            else:
                _checked(driver.cuLaunchKernel(function, *extent, where, 0))

    def _enter(self) -> None:
        """Have torch make the device's context current in this thread, as the driver requires.

        Autograd's threads have no context before torch has launched something from them.
        """
        torch.zeros((), dtype=torch.int32, device=torch.device("cuda", self._index))
        self._threads.known = True

    def _load(self, key: KernelKey, shared: int, loaded: _Loaded | None) -> _Loaded:
        """The kernel, loaded if necessary, and allowed to use `shared` bytes of shared memory."""
        from cuda.bindings import driver

        if loaded is None:
            code = compiler.cubin(key, self.properties.capability)
            library = _checked(driver.cuLibraryLoadData(code, None, None, 0, None, None, 0))
            kernel = _checked(driver.cuLibraryGetKernel(library, compiler.ENTRY.encode()))
        else:
            kernel = loaded.kernel
        device = _checked(driver.cuDeviceGet(self._index))
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuKernelSetAttribute(most, shared, kernel, device))
        with torch.cuda.device(self._index):
            return _Loaded(kernel, _checked(driver.cuKernelGetFunction(kernel)), shared)


class SimulatedLauncher(Launcher):
    """Runs kernels in numba's simulator, on the memory of CPU tensors.

    Args:
        properties: of the device that is simulated.
    """

    def __init__(self, properties: DeviceProperties) -> None:
        self.properties = properties

    def __call__(self, key: KernelKey, shape: Shape, arguments: Sequence[Argument]) -> None:
        """Run a kernel to completion."""
        from numba import cuda

        from rnnjit_cuda.sources import source

        made = source(key)
        values = simulated_arguments(made.together, arguments)
        kernel = cuda.jit(made.function)
        kernel[shape.grid, shape.threads, 0, shape.shared](*values)


def simulated_arguments(together: int, arguments: Sequence[Argument]) -> list[Any]:
    """The arguments of a kernel in the simulator: numpy arrays on the tensors' memory.

    Args:
        together: how many, the first ones, the kernel takes as one tuple. numba passes a tuple to a
            compiled kernel as its elements, so that a driver gets them one by one.
        arguments: as for a launcher.
    """
    values = [a if isinstance(a, int) else _elements(a) for a in arguments]
    return [tuple(values[:together]), *values[together:]] if together else values


def _elements(tensor: Tensor) -> Any:
    """The memory from a tensor's first element on as a numpy array; 16-bit floats as bits."""
    behind = tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset()
    flat = tensor.detach().as_strided((behind,), (1,))
    return (flat.view(torch.uint16) if flat.itemsize == 2 else flat).numpy()


@cache
def driver_launcher(index: int) -> Launcher:
    """The launcher of a CUDA device."""
    return DriverLauncher(index)


def _checked(result: Any) -> Any:
    """The value that a driver call returned.

    Raises:
        torch.OutOfMemoryError: there is no memory left for the code or the stack of a kernel.
        RuntimeError: any other error.
    """
    error, *values = result
    if error.name == "CUDA_ERROR_OUT_OF_MEMORY":
        raise torch.OutOfMemoryError(
            "CUDA out of memory while a kernel was loaded or launched: torch.cuda.empty_cache() "
            "frees memory that torch holds but does not use"
        )
    if int(error):
        raise RuntimeError(f"the CUDA driver failed: {error.name}")
    return values[0] if values else None
