"""Loading by all ranks together: every object is verified once, then all models change, or none."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch.distributed import broadcast
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from mlstate.digests import Digest
from mlstate.distributed.coordination import Coordinator
from mlstate.distributed.owned import Loaded, Wanted, bring_parts
from mlstate.distributed.placements import Layout, Split, boxes, layout_of, size_of
from mlstate.distributed.transfer import copy_part, cpu_group
from mlstate.errors import (
    IncompatibleStateError,
    IntegrityError,
    UnsupportedStoreError,
    concerning,
)
from mlstate.format.state_object import StateObject
from mlstate.layouts import component_names, component_prefix
from mlstate.models import LoadResult, TensorModel
from mlstate.objects import MemoryObjectStore, read_verified
from mlstate.reading import Only, check_state_size, state_object_limit
from mlstate.states import StateKey
from mlstate.stores.abstract import Found
from mlstate.stores.arguments import check_pin
from mlstate.stores.load import advising
from mlstate.stores.read import StateStore
from mlstate.tensors import Tensor, inner_model
from mlstate.tensors.fit import EXTRA_STATE, Fit, compare
from mlstate.tensors.load import apply_tensors, check_fit, check_ties, copy_pairs
from mlstate.tensors.memory import as_bytes, torch_shape
from mlstate.tensors.remake import Remade, remake

__all__ = ["LoadOptions", "load_sharded"]


@dataclass(frozen=True)
class LoadOptions:
    """The options of a store's ``load``."""

    strict: bool
    assign: bool
    ignore_mismatched_sizes: bool
    digest: str | None
    component: str | None


def load_sharded(
    store: StateStore, model: Any, key: StateKey, options: LoadOptions, *, group: Any
) -> LoadResult:
    """Load a state into the models of all ranks of a group; all of them call it.

    Args:
        store: The same store on every rank.
        model: This rank's model, with its part of the parameters.
        key: The state.
        options: As of `StateStore.load`.
        group: The process group; None is that of all ranks.

    Returns:
        What was loaded into the model of this rank. What another rank's model has is not
        unexpected here.

    Raises:
        PeerError: Another rank failed, was killed or stopped. No model was changed.
        MlstateError: As `StateStore.load`, the same on all ranks.
    """
    with concerning(key), Coordinator(group, "nothing was loaded") as job:
        if isinstance(store.objects, MemoryObjectStore):
            raise UnsupportedStoreError(
                "the ranks of a job cannot load from this store together",
                expected="a store that all of them reach",
                found=store.phrase,
                remedy="copy the state into a LocalStateStore or an S3StateStore",
            )
        found, pinned_now = _found(job, store, key, options)
        state = _state(job, store, found, options)
        with advising(found.entry):
            loading = _Loading(job, store, found=found, state=state, model=model, options=options)
            result = loading.load()
        result.pinned_now = pinned_now
        return result


def _found(
    job: Coordinator, store: StateStore, key: StateKey, options: LoadOptions
) -> tuple[Found, bool]:
    """The entry of the state, on each rank; rank 0 says which digest it has."""
    wanted = None if options.digest is None else Digest(options.digest)
    own: list[Found] = []

    def look() -> Any:
        own.append((store.cached(key, wanted) if wanted else None) or store.get_pinned(key))
        check_pin(own[0].entry.pinned_digest, options.digest)
        return [own[0].entry.digest, own[0].entry.pinned_now]

    digest, pinned_now = job.told("digest", look)
    if job.rank == 0:
        return own[0], pinned_now
    found = (store.cached(key, wanted) if wanted else None) or store.get(key)
    if found.entry.digest not in (None, digest):
        raise IntegrityError(
            "the ranks see different states under one key; nothing was loaded",
            path=found.entry.origin,
            expected=f"{digest}, on rank 0",
            found=f"{found.entry.digest}, on rank {job.rank}",
            remedy="give all ranks the same store; if it was overwritten just now, load again",
        )
    return Found(replace(found.entry, digest=Digest(digest)), found.objects), pinned_now


def _state(job: Coordinator, store: StateStore, found: Found, options: LoadOptions) -> StateObject:
    """The state object, which rank 0 reads and verifies, and sends to all."""
    read: list[bytes] = []

    def look() -> int:
        entry, files = found.entry, options.component is None
        store.access.bring(entry, Only.STATE_OBJECT, files=files)

        def verified() -> bytes:
            most = state_object_limit(entry)
            return read_verified(
                found.objects, entry.pinned_digest, what="a state object", max_size=most
            )

        data = store.access.repaired(entry, verified, Only.STATE_OBJECT, files=False)
        check_state_size(entry, StateObject.parse(data).nbytes)
        read.append(data)
        return len(data)

    size = job.told("state object", look)
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    if read:
        as_bytes(buffer)[:] = read[0]
    group = cpu_group(job)
    job.agree("state object")
    job.exchange(lambda: broadcast(buffer, job.global_ranks[0], group))
    data = bytes(as_bytes(buffer))
    _keep(store, found, data)
    state = StateObject.parse(data)
    if options.component is not None:
        prefix = component_prefix(options.component)
        names = component_names(state.specs, options.component)
        state = state.part({name[len(prefix) :]: name for name in names})
    if not state.specs:
        raise IncompatibleStateError("this state has no tensors; nothing was loaded")
    return state


def _keep(store: StateStore, found: Found, data: bytes) -> None:
    """Put the state object into a cache that lacks it: on another node it is not fetched again."""
    own = store.fetcher.cache.own if store.fetcher is not None else None
    digest = found.entry.pinned_digest
    if own is not None and found.objects.size(digest) is None:
        writer = own.writer()
        writer.put(digest, [data])
        writer.flush()


class _Loading:
    """One act of loading, on one rank."""

    def __init__(
        self,
        job: Coordinator,
        store: StateStore,
        *,
        found: Found,
        state: StateObject,
        model: Any,
        options: LoadOptions,
    ) -> None:
        self._job, self._store, self._found = job, store, found
        self._state, self._options = state, options
        if not isinstance(model, TensorModel) or not isinstance(
            inner := inner_model(model, state.specs), torch.nn.Module
        ):
            raise IncompatibleStateError(
                f"this {type(model).__name__} cannot be loaded by several ranks together",
                expected="a torch.nn.Module",
            )
        self._model = inner

    def load(self) -> LoadResult:
        """Compare, verify, and only then change the model."""
        options = self._options
        fit, wanted = self._fitting()
        remade = remake(fit) if options.assign else Remade([], [])
        prefix = "" if options.component is None else component_prefix(options.component)
        loaded = bring_parts(
            self._job,
            self._found,
            self._store.access,
            state=self._state,
            wanted=wanted,
            prefix=prefix,
        )
        if options.strict:
            check_ties(fit, {name: one.values for name, one in loaded.items()})
        direct = not options.assign and _is_direct(fit)
        given = {} if direct else {name: self._given(fit, name, loaded[name]) for name in loaded}
        pairs = list(self._pairs(fit, loaded)) if direct else []
        self._job.finish("all is verified")
        if direct:
            copy_pairs(pairs, apart=fit.apart)
            result = LoadResult(
                fit.absent, fit.unexpected, fit.mismatched, fit.cast, tied_keys=sorted(fit.tied)
            )
        else:
            with remade.placed(self._model):
                result = apply_tensors(
                    self._model, given, fit, strict=options.strict, assign=options.assign
                )
        result.digest = self._found.entry.digest
        return result

    def _fitting(self) -> tuple[Fit, Wanted]:
        """The fit of this rank's model, and what all ranks want.

        What the model of another rank has, a stage of a pipeline, is not unexpected here.

        Raises:
            IncompatibleStateError: The state does not fit.
        """
        specs = self._state.specs
        fit = compare(self._model, specs)
        layouts: dict[Layout, int] = {}
        names = fit.common - fit.mismatched.keys()
        wanted = []
        for name in sorted({*names, *(fit.unexpected if fit.own_rules else ())}):
            layout = self._layout(fit, name)
            number = None if layout is None else layouts.setdefault(layout, len(layouts))
            wanted.append([name, number])
        text = {"own": sorted(fit.own), "layouts": list(map(astuple, layouts)), "wanted": wanted}
        texts = self._job.gathered("names", zlib.compress(json.dumps(text).encode(), 1))
        parsed = {one: json.loads(zlib.decompress(one)) for one in {*texts}}
        elsewhere = {name for read in parsed.values() for name in read["own"]}
        fit = replace(fit, unexpected=[n for n in fit.unexpected if n not in elsewhere])
        check_fit(
            self._model,
            fit,
            specs,
            strict=self._options.strict,
            assign=self._options.assign,
            ignore_mismatched_sizes=self._options.ignore_mismatched_sizes,
        )
        listed = {one: _layouts(read) for one, read in parsed.items()}
        return fit, Wanted(tuple(listed[one] for one in texts))

    def _layout(self, fit: Fit, name: str) -> Layout | None:
        own = fit.own.get(name)
        if not isinstance(own, DTensor) or tuple(own.shape) != self._shape(name):
            return None
        with concerning(tensor=name):
            return layout_of(own, self._job.global_ranks)

    def _shape(self, name: str) -> tuple[int, ...]:
        return torch_shape(self._state.specs[name])

    def _pairs(self, fit: Fit, loaded: Mapping[str, Loaded]) -> Iterator[tuple[Tensor, Tensor]]:
        """What is copied where: views of the model's own memory, in its order."""
        for name, entry in fit.own.items():
            if name not in loaded:
                continue
            one = loaded[name]
            own: Any = entry.detach()
            with torch.no_grad():
                local = own.to_local() if isinstance(own, DTensor) else own
            if one.part is not None:
                yield local, one.part.view(local.shape)
            elif one.whole is not None and tuple(entry.shape) != self._shape(name):
                yield local, one.whole.view(local.shape)  # a scalar, stored with one dimension
            elif one.whole is not None:
                yield from ((local[i], one.whole[o]) for i, o in boxes(one.region))

    def _given(self, fit: Fit, name: str, one: Loaded) -> Tensor:
        """A tensor as the model's own load takes it: a DTensor where its entry is one."""
        own = fit.own.get(name)
        if not isinstance(own, DTensor):
            return one.values
        local = one.part
        if local is None:
            assert one.whole is not None
            local = torch.empty(size_of(one.region), dtype=one.whole.dtype, device="cpu")
            copy_part(local, one.region, one.whole)
        with torch.no_grad():
            held = own.to_local()
        device = own.device_mesh.device_type if own.is_meta else held.device
        return DTensor.from_local(
            local.view(held.shape).to(device=device, dtype=own.dtype),
            own.device_mesh,
            own.placements,
            run_check=False,
            shape=own.shape,
            stride=own.stride(),
        )


def _layouts(read: Any) -> dict[str, Layout | None]:
    layouts = [
        Layout(tuple(ranks), tuple(mesh), tuple(Split(*split) for split in splits))
        for ranks, mesh, splits in read["layouts"]
    ]
    return {name: None if number is None else layouts[number] for name, number in read["wanted"]}


def _is_direct(fit: Fit) -> bool:
    """Whether copying into the entries does exactly what the model's own load would do."""
    return (
        not fit.own_rules
        and not torch.__future__.get_swap_module_params_on_conversion()
        and not any(name.endswith(EXTRA_STATE) for name in fit.own)
        and not any(is_lazy(entry) for entry in fit.own.values())
    )
