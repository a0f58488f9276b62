"""For transformers: a callback of its `Trainer` that saves states, and `from_pretrained`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from mlstate.errors import FormatError, IncompatibleStateError, StateNotFoundError
from mlstate.integrations.common import (
    StoreLike,
    files_in,
    folder_with,
    needing,
    reading_store,
    saving_store,
)
from mlstate.integrations.runs import Point, Run
from mlstate.models import with_state_type
from mlstate.states import StateKey, StateType, check_key
from mlstate.stores.read import StateStore
from mlstate.tensors import unwrapped

with needing("transformers"):
    from transformers import (
        AutoConfig,
        GenerationConfig,
        PreTrainedModel,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

__all__ = ["SaveStates", "from_pretrained"]

_Model = TypeVar("_Model")
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_WHOLE = 1e-6
"""An epoch is over if its number is this near to a whole one."""


def from_pretrained(
    model_class: type[_Model], key: StateKey, store: StoreLike | None = None, **kwargs: Any
) -> _Model:
    """A model, tokenizer, processor or configuration of transformers, from a state.

    All is verified, and the network is not asked for anything but what a manifest's mirrors have.
    A model gets the tensors as they are mapped: nothing is written to the disk. (A model with code
    of its own, or one that is quantized, is read from a folder in the cache instead.) What is
    missing in the state is new and random, and told, as by transformers' own `from_pretrained`.

    Args:
        model_class: A class of transformers with `from_pretrained`: ``BertModel``,
            ``AutoModelForCausalLM``, ``AutoTokenizer``.
        key: The state; ``config.json`` and the files of the tokenizer are among its files.
        store: The store that has it, or what `mlstate.open_store` takes; `mlstate.Store()` by
            default.
        **kwargs: As for the class's own `from_pretrained`: ``dtype``, ``device_map``, ``config``.

    Returns:
        What the class's own `from_pretrained` returns. A model has the `state_type` of the key.

    Raises:
        StateNotFoundError: There is no such state, or it has no ``config.json``.
        IntegrityError: Bytes are damaged or missing.
        FetchError: Something is missing in a cache, and no mirror could give it.
    """
    check_key(key)
    view = reading_store(store)
    if kwargs.get("subfolder"):  # of a pipeline, say
        part: Any = model_class
        component: _Model = part.from_pretrained(
            folder_with(view, key), **{"local_files_only": True, **kwargs}
        )
        return component
    with files_in(view, key) as files:
        if not _is_model(model_class):
            made: _Model = model_class.from_pretrained(  # type: ignore[attr-defined]
                files, **{"local_files_only": True, **kwargs}
            )
            return made
        config = kwargs.pop("config", None) or _config(view, key, files, kwargs)
        if getattr(config, "quantization_config", None) or (
            kwargs.get("trust_remote_code") and getattr(config, "auto_map", None)
        ):
            options = {"local_files_only": True, "config": config, **kwargs}
            result = model_class.from_pretrained(  # type: ignore[attr-defined]
                folder_with(view, key), **options
            )
        else:
            if (files / _GENERATION).exists() and "generation_config" not in kwargs:
                kwargs["generation_config"] = GenerationConfig.from_pretrained(files)
            result = _concrete(model_class, config).from_pretrained(
                None, config=config, state_dict=view.load_state_dict(key), **kwargs
            )
    model = result[0] if isinstance(result, tuple) else result  # with output_loading_info=True
    with_state_type(model, key.state_type)
    given: _Model = result
    return given


def _is_model(kind: Any) -> bool:
    """Whether a class is one of models; those that choose one by its config have `from_config`."""
    return issubclass(kind, PreTrainedModel) or hasattr(kind, "from_config")


def _config(store: StateStore, key: StateKey, files: Path, kwargs: Mapping[str, Any]) -> Any:
    if not (files / _CONFIG).exists():
        raise StateNotFoundError(
            f"this state has no {_CONFIG}",
            key=key,
            path=store,
            expected=", ".join(store.files(key)) or "it has no files",
            remedy="give config=, or save the state with its files, as `adopt` does of a folder",
        )
    trust = kwargs.get("trust_remote_code")
    return AutoConfig.from_pretrained(files, local_files_only=True, trust_remote_code=trust)


def _concrete(kind: Any, config: Any) -> Any:
    """The class of the model that one of the ``Auto`` classes makes of a config."""
    if issubclass(kind, PreTrainedModel):
        return kind
    with torch.device("meta"):
        return type(kind.from_config(config))


class SaveStates(TrainerCallback):
    """Saves the model into a store while a `Trainer` trains it, with config and tokenizer.

    States are ``<run>-e1``, ``<run>-e2`` after each epoch, or with ``every="save"`` ``<run>-s500``
    at each step at which the trainer itself saves. Their meta has the step, the epoch, and what was
    measured. A tensor that did not change is not stored again: the frozen part of a model, say. Of
    several processes the main one saves.

    Optimizer, scheduler and random numbers are what the trainer's own checkpoints are for. A run
    that is resumed from one of these goes on in the store, too.

    Args:
        store: The store to save into, or what `mlstate.open_store` takes.
        run: The name of the run.
        state_type: The type of the states; by default the model's own, or
            ``pytorch.<name of its class>``.
        every: ``"epoch"``, or ``"save"``: whenever the trainer saves.
        keep_last: How many states of the run stay; by default all. Others are deleted; the store's
            `prune` makes room.
        keep_best: A metric, such as ``"eval_loss"`` or ``"accuracy"``: the state that is best by it
            stays, and is ``<run>-best``, too; the meta of that says of which it is the second name.
        greater_is_better: Of `keep_best`; by default if its name does not end with ``loss``.
        overwrite: Begin a run under a name that has states in the store.

    Raises:
        ReadOnlyStoreError: The store does not save.
        FormatError: An argument is not one of these.
    """

    def __init__(
        self,
        store: StoreLike,
        run: str,
        *,
        state_type: StateType | None = None,
        every: Literal["epoch", "save"] = "epoch",
        keep_last: int | None = None,
        keep_best: str | None = None,
        greater_is_better: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        if every not in ("epoch", "save"):
            raise FormatError("unknown every", expected='"epoch" or "save"', found=repr(every))
        self.store = saving_store(store)
        self.overwrite = overwrite
        self._every = every
        self._state_type = state_type
        metric = keep_best
        if keep_best is not None and not keep_best.startswith("eval_"):
            metric = f"eval_{keep_best}"  # the trainer's own name
        greater = not (metric or "").endswith("loss")
        greater = greater if greater_is_better is None else greater_is_better
        self._options = {"keep_last": keep_last, "metric": metric, "greater": greater}
        self._name = run
        self._due: int | None = None  # the step at whose end an epoch ended, if it is measured yet

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Refuse, before anything is trained, what could not be saved.

        Raises:
            StateExistsError: The store has a run of this name, and this one does not resume it.
            IncompatibleStateError: The model is spread over processes.
            FormatError: The best is wanted, and nothing is measured.
        """
        if not state.is_world_process_zero:
            return
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise IncompatibleStateError(
                "the model is spread over processes, so no process could save it",
                remedy="save what the trainer's `save_model` writes: mlstate.adopt(folder, key, "
                "store)",
            )
        if self._options["metric"] and str(getattr(args.eval_strategy, "value", "")) == "no":
            raise FormatError(
                "keep_best needs evaluations",
                found='eval_strategy="no"',
                remedy="set eval_strategy",
            )
        run = self._run(model)
        if state.global_step == 0:
            run.check_is_new(overwrite=self.overwrite)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Save, or if an evaluation follows wait for it: the model stays the same until then."""
        if self._every == "epoch":
            if control.should_evaluate:
                self._due = state.global_step
            else:
                self._save(state, {}, **kwargs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the epoch that has ended."""
        if self._due is not None and self._due == state.global_step:
            self._due = None
            self._save(state, metrics or {}, **kwargs)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Save, if that is wanted whenever the trainer does; it evaluates before."""
        if self._every == "save":
            now = [one for one in state.log_history if one.get("step") == state.global_step]
            metrics = {name: value for one in now for name, value in one.items()}
            self._save(state, metrics, **kwargs)

    def _save(
        self,
        state: TrainerState,
        metrics: Mapping[str, Any],
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if name.startswith("eval_") and isinstance(value, int | float)
        }
        epoch = float(state.epoch or 0)
        whole = self._every == "epoch" and abs(epoch - round(epoch)) < _WHOLE
        name = f"e{round(epoch)}" if whole else f"s{state.global_step}"
        point = Point(name, state.global_step, {**numbers, "epoch": epoch})
        inner = unwrapped(model)
        self._run(model).save(inner.state_dict(), point, _files_of(inner, processing_class))

    def _run(self, model: Any) -> Run:
        inner = unwrapped(model)
        kind = self._state_type or getattr(inner, "state_type", None)
        if not isinstance(kind, StateType):
            kind = StateType("pytorch", type(inner).__name__)
        return Run(self.store, kind, self._name, **self._options)  # type: ignore[arg-type]


def _files_of(model: Any, processing_class: Any) -> dict[str, bytes]:
    """The files that `save_pretrained` writes beside the weights."""
    config: Any = getattr(model, "config", None)
    with tempfile.TemporaryDirectory(prefix="mlstate-") as name:
        folder = Path(name)
        if hasattr(config, "save_pretrained"):
            if isinstance(model, PreTrainedModel):
                config.architectures = [type(model).__name__]  # as the model's own does
            config.save_pretrained(folder)
        generation = getattr(model, "generation_config", None)
        if isinstance(generation, GenerationConfig):
            generation.save_pretrained(folder)
        if hasattr(processing_class, "save_pretrained"):
            processing_class.save_pretrained(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
