"""The integration with Ignite: a real engine."""

from __future__ import annotations

import pytest
import torch

from mlstate import ManifestStore, StateKey, manifest_of
from mlstate.errors import (
    FormatError,
    IncompatibleStateError,
    ReadOnlyStoreError,
    StateExistsError,
)
from tests.frameworks.models import needs
from tests.support.models import LINEAR, net, same, values

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]
DATA = [(torch.ones(4, 64) * number, torch.tensor([0, 1, 2, 3])) for number in range(3)]


@pytest.fixture
def integration():
    needs("ignite")
    import mlstate.integrations.ignite

    return mlstate.integrations.ignite


def engine(model):
    ignite = needs("ignite.engine")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.nn.functional.cross_entropy
    return ignite.create_supervised_trainer(model, optimizer, loss)


def names(store):
    return {key.training_id for key in store.get_state_keys(LINEAR)}


def test_each_epoch_while_training_and_the_training_id_at_the_end(integration, store):
    events = needs("ignite.engine").Events
    model, seen = net(), []
    training = engine(model)
    training.add_event_handler(events.EPOCH_COMPLETED, lambda _: seen.append(values(model)))
    integration.SaveModelState(store, model, "run", meta={"license": "MIT"}).attach(training)
    there = []
    training.add_event_handler(events.EPOCH_COMPLETED, lambda _: there.append(names(store)))
    training.run(DATA, max_epochs=3)
    assert there == [{"run-e1"}, {"run-e1", "run-e2"}, {"run-e1", "run-e2", "run-e3"}]
    assert names(store) == {"run", "run-e1", "run-e2", "run-e3"}
    for number, wanted in enumerate(seen, 1):
        key = StateKey(LINEAR, f"run-e{number}")
        assert same(store.load_state_dict(key), wanted)
        assert store.meta(key) == {"license": "MIT", "epoch": number}
    assert store.digest(StateKey(LINEAR, "run")) == store.digest(key)


def test_every_second_epoch_and_the_last_ones(integration, store):
    model = net()
    training = engine(model)
    integration.SaveModelState(store, model, "run", every=2, keep_last=1).attach(training)
    training.run(DATA, max_epochs=5)
    assert names(store) == {"run", "run-e4"}


def test_an_engine_that_ends_early_has_its_last_state(integration, store):
    events = needs("ignite.engine").Events
    model = net()
    training = engine(model)
    integration.SaveModelState(store, model, "run").attach(training)
    training.add_event_handler(events.ITERATION_COMPLETED(once=4), lambda _: training.terminate())
    training.run(DATA, max_epochs=3)
    assert names(store) == {"run", "run-e1"}
    assert same(store.load_state_dict(StateKey(LINEAR, "run")), values(model))


def test_it_is_a_handler_for_any_event(integration, store):
    events = needs("ignite.engine").Events
    model = net()
    training = engine(model)
    handler = integration.SaveModelState(store, model, "run")
    training.add_event_handler(events.COMPLETED, handler)
    training.run(DATA, max_epochs=2)
    assert names(store) == {"run"}


def test_another_run_of_the_name_is_refused(integration, store):
    for number in (0, 1):
        model = net(number)
        training = engine(model)
        integration.SaveModelState(store, model, "run").attach(training)
        if number:
            with pytest.raises(StateExistsError):
                training.run(DATA, max_epochs=1)
        else:
            training.run(DATA, max_epochs=1)
            digest = store.digest(StateKey(LINEAR, "run-e1"))
    assert store.digest(StateKey(LINEAR, "run-e1")) == digest
    handler = integration.SaveModelState(store, model, "run", overwrite=True)
    training = engine(model)
    handler.attach(training)
    training.run(DATA, max_epochs=1)
    assert store.digest(StateKey(LINEAR, "run-e1")) != digest


def test_only_the_first_process_saves(integration, tmp_path):
    """Two real processes, each with a store of its own."""
    idist = needs("ignite.distributed")
    with idist.Parallel(backend="gloo", nproc_per_node=2) as parallel:
        parallel.run(train, str(tmp_path))
    assert names(needs("mlstate").LocalStateStore(tmp_path / "0")) == {"run", "run-e1"}
    assert not (tmp_path / "1").exists()


def train(rank, folder):
    from mlstate.integrations.ignite import SaveModelState

    model = net()
    training = engine(model)
    SaveModelState(f"{folder}/{rank}", model, "run").attach(training)
    training.run(DATA, max_epochs=1)


def test_what_could_not_be_is_refused_at_once(integration, store):
    with pytest.raises(FormatError, match="keep_last"):
        integration.SaveModelState(store, net(), "run", keep_last=0)
    with pytest.raises(FormatError, match="every"):
        integration.SaveModelState(store, net(), "run", every=0)
    with pytest.raises(FormatError, match="valid part"):
        integration.SaveModelState(store, net(), "a/b")
    with pytest.raises(IncompatibleStateError, match="with_state_type"):
        integration.SaveModelState(store, torch.nn.Linear(2, 2), "run")
    with pytest.raises(ReadOnlyStoreError):
        integration.SaveModelState(ManifestStore(manifest_of(store)), net(), "run")
