"""`cached`: a kernel whose repeated launches skip what Triton works out anew for each of them.

Triton binds the arguments, specialises each of them and looks the kernel up by a string: 10 to 30 us a launch. Here the
same call, told by what the specialisation depends on, goes to the compiled kernel's launcher directly.

The contract: a launch does what `kernel[grid](...)` does, with the same arguments, on the current device and stream. Its key
holds at least what Triton's does: of a tensor its type and the address modulo 16, of an integer its value (its width where
it is not specialised), of a float that it is one, the values of constants and options, the device. Whatever else comes, and
whatever watches or replaces Triton's own launch (hooks, a patched `JITFunction.run`, the interpreter), takes that one.
"""

import functools

import torch
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# None where it was replaced before this module was imported: then nothing is ever remembered.
_RUN = JITFunction.run if JITFunction.run.__module__ == JITFunction.__module__ else None
_MOST = 1024  # launches remembered for a kernel; of sizes that always change the oldest would never come back
_TENSORS = (torch.Tensor, torch.nn.Parameter)


def cached(kernel):
    """Decorates a kernel of triton.jit whose constants follow its other arguments and are given by name."""
    return _Cached(kernel) if isinstance(kernel, JITFunction) and torch.version.hip is None else kernel


class _Cached:
    def __init__(self, kernel):
        functools.update_wrapper(self, kernel.fn)
        self.kernel = kernel
        constants = [param.is_constexpr for param in kernel.params]
        self.count = constants.index(True) if True in constants else len(constants)
        if not all(constants[self.count :]):
            raise TypeError(f"launch.cached: {kernel.__name__} has arguments after its first constant")
        self.constants = [param.name for param in kernel.params[self.count :]]
        self.not_specialised = frozenset(i for i in range(self.count) if kernel.params[i].do_not_specialize)
        self.launches = {}

    def __getattr__(self, name):
        return getattr(self.kernel, name)

    def __getitem__(self, grid):
        return functools.partial(self.launch, grid)

    def launch(self, grid, *args, **settings):
        if self.is_watched():
            return self.kernel.run(*args, grid=grid, warmup=False, **settings)
        device = driver.active.get_current_device()
        values = settings.values()
        key = [device, *settings, *values, *map(type, values)]
        try:
            if len(args) != self.count or type(grid) is not tuple or not self._describe(args, key):
                return self.kernel.run(*args, grid=grid, warmup=False, **settings)
            key = tuple(key)
            found = self.launches.get(key)
        except TypeError:  # a constant without a hash
            return self.kernel.run(*args, grid=grid, warmup=False, **settings)
        if found is None:
            compiled = self.kernel.run(*args, grid=grid, warmup=False, **settings)
            if compiled is not None and all(name in settings for name in self.constants):
                if len(self.launches) >= _MOST:
                    self.launches.clear()
                constants = tuple(settings[name] for name in self.constants)
                self.launches[key] = compiled, compiled.run, compiled.function, compiled.packed_metadata, constants
            return compiled
        compiled, run, function, metadata, constants = found
        grid = *grid, 1, 1
        stream = driver.active.get_current_stream(device)
        run(grid[0], grid[1], grid[2], stream, function, metadata, None, None, None, *args, *constants)
        return compiled

    def is_watched(self):
        runtime = knobs.runtime
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        return (
            JITFunction.run is not _RUN
            or self.kernel.pre_run_hooks
            or (enter is not None and getattr(enter, "calls", True))
            or (leave is not None and getattr(leave, "calls", True))
            or getattr(runtime, "add_stages_inspection_hook", None) is not None
        )

    def _describe(self, args, key):
        """Adds to the key what Triton's specialisation of these arguments depends on; False: of one of them, unknown.

        What an argument adds begins with a value or a type that no other kind begins with, so two calls of one key are
        alike in all of their arguments.
        """
        for i, arg in enumerate(args):
            kind = type(arg)
            if kind in _TENSORS:
                key += arg.dtype, arg.data_ptr() % 16
            elif kind is int:
                key.append("i32" if i in self.not_specialised and -(1 << 31) <= arg < 1 << 31 else arg)
            elif arg is None:
                key.append(None)
            elif kind is float:
                key.append(float)
            elif not isinstance(arg, tuple) or not _describe_tuple(arg, kind, key):
                return False
        return True


def _describe_tuple(values, kind, key):
    """The same of a tuple's values, in which every integer is specialised. A plain tuple beside a tensor is its strides,
    which are integers."""
    if len(values) == 2:
        tensor, strides = values
        if type(tensor) in _TENSORS and type(strides) is tuple:
            key += kind, tensor.dtype, tensor.data_ptr() % 16, strides
            return True
    key += kind, len(values)
    for value in values:
        kind = type(value)
        if value is None or kind is int:
            key.append(value)
        elif kind is float:
            key.append(float)
        elif kind in _TENSORS:
            key += value.dtype, value.data_ptr() % 16
        elif not isinstance(value, tuple) or not _describe_tuple(value, kind, key):
            return False
    return True


def in_order(t, channels_last):
    """t [batch, channels, ...] dense with its channels behind its places, or before them; a copy where it is not."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


def cdiv(a, b):
    """a / b rounded up; triton.cdiv, which kernels can call as well, takes 1 us on the host."""
    return -(-a // b)


def power_of_two(n):
    """The least power of two that is not below n, 1 at least."""
    return 1 << max(n - 1, 0).bit_length()
