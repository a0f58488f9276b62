"""What an assigned state leaves on the meta device: no part of a state, so made again or refused.

Buffers that are not persistent are in no state, and neither are tensors that a module holds as
plain attributes. Two hooks can make them, each by its own convention: ``reset_parameters()`` of the
module, and ``_init_weights(module)`` of a module around it, as transformers has it. A hook is
believed only if it writes every byte, and the same ones twice: it is run over two fillings of the
memory, with other random numbers. It runs only where all that it could overwrite is on the meta
device, too, and all else that it does to the modules is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch

from mlstate.errors import IncompatibleStateError
from mlstate.tensors.fit import Fit, entries, some
from mlstate.tensors.ties import same_bytes

__all__ = ["Remade", "remake"]

_FILLINGS = (0xA5, 0x5A)
_ENTRIES = ("_parameters", "_buffers")


@dataclass(frozen=True)
class _Slot:
    """A place in a module where a tensor is held that is no entry of the state dict."""

    name: str
    module: torch.nn.Module
    kind: str  # "_parameters", "_buffers", or "__dict__" of a plain attribute
    key: str
    tensor: torch.Tensor

    def put(self, tensor: torch.Tensor) -> None:
        getattr(self.module, self.kind)[self.key] = tensor


@dataclass(frozen=True)
class Remade:
    """What is put into a model beside the state.

    ``values`` are new tensors, and ``alike`` are names of entries: the same tensor is held here.
    """

    values: list[tuple[_Slot, torch.Tensor]]
    alike: list[tuple[_Slot, str]]

    @contextmanager
    def placed(self, model: torch.nn.Module) -> Iterator[None]:
        """Put them in around a load, and take them out again if it is refused."""
        for slot, value in self.values:
            slot.put(value)
        try:
            yield
            if self.alike:
                now = entries(model)
                for slot, name in self.alike:
                    slot.put(now[name])
        except Exception:  # after Ctrl-C the model is loaded, or still on the meta device
            for slot, _ in self.values:
                slot.put(slot.tensor)
            raise


def remake(fit: Fit) -> Remade:
    """Make what an assigned load would leave on the meta device.

    Raises an `IncompatibleStateError` that names what nothing here can make. The model is as it was
    before, either way.
    """
    names: dict[int, str] = {}
    for name, entry in fit.own.items():
        names.setdefault(id(entry), name)
    slots = list(_slots(fit))
    alike = [
        (slot, names[id(slot.tensor)])
        for slot in slots
        if id(slot.tensor) in names and slot.kind != _ENTRIES[0]
    ]
    left = [slot for slot in slots if slot.tensor.is_meta and id(slot.tensor) not in names]
    if not left:
        return Remade([], alike)
    # Without elements there is nothing to make.
    nothing = [slot for slot in left if slot.kind and not slot.tensor.numel()]
    values = [(slot, _filled(slot.tensor, 0)) for slot in nothing]
    left = [slot for slot in left if slot.tensor.numel()]
    unmade = [slot.name for slot in left if not slot.kind]
    by_module: dict[torch.nn.Module, list[_Slot]] = {}
    for slot in left:
        if slot.kind:
            by_module.setdefault(slot.module, []).append(slot)
    modules = dict(fit.modules)
    paths = {module: path for path, module in reversed(fit.modules)}
    for module, own in by_module.items():
        made = _made(module, own, _hooks(paths[module], modules))
        if made is None:
            unmade += [slot.name for slot in own]
        else:
            values += zip(own, made, strict=True)
    if unmade:
        raise IncompatibleStateError(
            "parts of this model that are no part of a state would stay on the meta device, "
            "without values; nothing was loaded",
            expected="buffers with values, or modules whose reset_parameters() makes them",
            found=some(sorted(unmade)),
            remedy=f"give them their values before the load (model.{sorted(unmade)[0]} = ...), or "
            "make the model with its buffers on the CPU, as accelerate's init_empty_weights() does",
        )
    return Remade(values, alike)


def _slots(fit: Fit) -> Iterator[_Slot]:
    """Where the modules hold tensors that their state dict does not name.

    All are looked at only in a model on the meta device, and else the buffers alone.
    """
    if any(getattr(entry, "is_meta", False) for entry in fit.own.values()):
        yield from _entries(fit, _ENTRIES)
        yield from _attributes(fit)
    else:
        yield from _entries(fit, _ENTRIES[1:])


def _entries(fit: Fit, kinds: tuple[str, ...]) -> Iterator[_Slot]:
    for path, module in fit.modules:
        prefix = path and f"{path}."
        for kind in kinds:
            for key, tensor in getattr(module, kind).items():
                if tensor is not None and f"{prefix}{key}" not in fit.own:
                    yield _Slot(f"{prefix}{key}", module, kind, key, tensor)


def _attributes(fit: Fit) -> Iterator[_Slot]:
    """Plain attributes on the meta device.

    What lies in lists and the like comes without a kind, for nothing can be put there. If it is an
    entry it is left out: such a list is a module's own affair, which it keeps up to date or not.
    """
    known = {id(entry) for entry in fit.own.values()}
    for path, module in fit.modules:
        prefix = path and f"{path}."
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                if value.is_meta:
                    yield _Slot(f"{prefix}{key}", module, "__dict__", key, value)
            elif key not in (*_ENTRIES, "_modules") and isinstance(value, list | tuple | dict):
                for item in value.values() if isinstance(value, dict) else value:
                    if isinstance(item, torch.Tensor) and item.is_meta and id(item) not in known:
                        yield _Slot(f"{prefix}{key}", module, "", key, item)


def _hooks(path: str, modules: Mapping[str, torch.nn.Module]) -> list[Callable[[], object]]:
    """What may fill the tensors of a module: its own hook, and that of the nearest around it."""
    module: Any = modules[path]
    found: list[Callable[[], object]] = []
    if callable(getattr(type(module), "reset_parameters", None)):
        found.append(module.reset_parameters)
    while True:
        around: Any = modules.get(path)
        if callable(getattr(type(around), "_init_weights", None)):
            return [*found, partial(around._init_weights, module)]
        if not path:
            return found
        path = path.rpartition(".")[0]


def _made(
    module: torch.nn.Module, slots: list[_Slot], hooks: list[Callable[[], object]]
) -> list[torch.Tensor] | None:
    """The values that one of the hooks gives all of these; None if none does."""
    if not all(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())):
        return None
    for hook in hooks:
        first, second = (_run(module, slots, hook, filling) for filling in _FILLINGS)
        if first and second and all(map(same_bytes, first, second)):
            return second
    return None


def _run(
    module: torch.nn.Module, slots: list[_Slot], hook: Callable[[], object], filling: int
) -> list[torch.Tensor] | None:
    """The tensors after a hook was run over memory that was filled; None if it failed.

    The modules are as they were afterwards, in all that is seen here.
    """
    held = [
        (part, dict(vars(part)), dict(part._parameters), dict(part._buffers))
        for part in module.modules()
    ]
    try:
        # Not to be on whatever device is the default, nor to use up the caller's random numbers.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(filling)
            filled = {id(slot.tensor): _filled(slot.tensor, filling) for slot in slots}
            for slot in slots:
                slot.put(filled[id(slot.tensor)])
            hook()
            made = [getattr(slot.module, slot.kind).get(slot.key) for slot in slots]
    except Exception:  # it cannot do it, for whatever reason
        return None
    finally:
        for part, attributes, parameters, buffers in held:
            vars(part).clear()
            vars(part).update(attributes)
            part._parameters.clear()
            part._parameters.update(parameters)
            part._buffers.clear()
            part._buffers.update(buffers)
    fit = all(
        isinstance(tensor, torch.Tensor)
        and tensor.is_cpu
        and (tensor.shape, tensor.dtype) == (slot.tensor.shape, slot.tensor.dtype)
        for tensor, slot in zip(made, slots, strict=True)
    )
    return made if fit else None


def _filled(tensor: torch.Tensor, filling: int) -> torch.Tensor:
    """Memory for a tensor on the meta device, every byte of it the same."""
    empty = torch.empty_like(tensor, device="cpu")
    empty.untyped_storage().fill_(filling)  # type: ignore[attr-defined]  # the stubs lack it
    return empty
