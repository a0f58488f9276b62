"""Loading into a model: strict, sizes, dtypes, ties, assign, meta, lazy and other modules.

Each rule is held against what torch's own load_state_dict does with the same tensors.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mlstate import LocalStateStore, StateKey, StateType, with_state_type
from mlstate.errors import IncompatibleStateError
from tests.support.models import LINEAR, net, same, values

KEY = StateKey(LINEAR, "a")


def typed(module: nn.Module) -> nn.Module:
    return with_state_type(module, LINEAR)


def put(store: LocalStateStore, module: nn.Module | dict[str, torch.Tensor]) -> StateKey:
    tensors = module if isinstance(module, dict) else module.state_dict()
    return store.save_state_dict(tensors, KEY, overwrite=True)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


class TestStrict:
    def test_missing_and_unexpected_are_refused_and_nothing_is_loaded(self, store):
        tensors = values(net(1))
        tensors["new.weight"] = tensors.pop("0.weight")
        put(store, tensors)
        model = net(2)
        before = values(model)
        with pytest.raises(IncompatibleStateError) as caught:
            store.load(model, KEY)
        assert "0.weight" in str(caught.value)
        assert "new.weight" in str(caught.value)
        assert caught.value.key == KEY
        assert same(values(model), before)
        with pytest.raises(RuntimeError):  # what torch raises, too
            store.load(model, KEY)

    def test_not_strict_loads_what_both_have_and_reports_as_torch_does(self, store):
        tensors = values(net(1))
        tensors["new.weight"] = tensors.pop("0.weight")
        put(store, tensors)
        ours, torchs = net(2), net(2)
        result = store.load(ours, KEY, strict=False)
        expected = torchs.load_state_dict(tensors, strict=False)
        assert result.missing_keys == expected.missing_keys == ["0.weight"]
        assert result.unexpected_keys == expected.unexpected_keys == ["new.weight"]
        assert same(values(ours), values(torchs))

    @pytest.mark.parametrize("strict", [True, False])
    def test_a_wrapped_model_is_told_where_to_load(self, store, strict):
        put(store, net(1))
        wrapped = typed(Wrapper(net(2)))
        with pytest.raises(IncompatibleStateError, match=r"load into model\.module"):
            store.load(wrapped, KEY, strict=strict)
        put(store, wrapped)
        with pytest.raises(IncompatibleStateError, match="begin with module, as of a wrapped"):
            store.load(net(3), KEY, strict=strict)

    def test_a_load_of_nothing_at_all_is_refused_even_if_not_strict(self, store):
        put(store, {"x": torch.zeros(1)})
        with pytest.raises(IncompatibleStateError, match="no name in common"):
            store.load(net(2), KEY, strict=False)

    def test_the_counter_that_old_batch_norms_lack_is_not_missing_just_as_in_torch(self, store):
        tensors = values(net(1))
        del tensors["1.num_batches_tracked"]
        put(store, tensors)
        assert net(2).load_state_dict(tensors).missing_keys == []
        for assign in (False, True):
            result = store.load(net(2), KEY, assign=assign)
            assert result == ([], [])
        with torch.device("meta"):
            model = net(0)
        store.load(model, KEY, assign=True)
        assert model[1].num_batches_tracked.item() == 0


class TestMismatchedSizes:
    def test_a_resnet_of_1000_classes_into_one_with_2(self, store):
        big, small = net(1, classes=1000), net(2, classes=2)
        put(store, big)
        before = values(small)
        with pytest.raises(IncompatibleStateError) as caught:
            store.load(small, KEY)
        assert "3.weight (stored [1000, 64], model [2, 64])" in str(caught.value)
        assert "ignore_mismatched_sizes" in str(caught.value)
        with pytest.raises(IncompatibleStateError):
            store.load(small, KEY, strict=False)  # as in torch, strict is not about shapes
        assert same(values(small), before)
        for assign in (False, True):
            result = store.load(small, KEY, ignore_mismatched_sizes=True, assign=assign)
            assert sorted(result.mismatched_keys) == ["3.bias", "3.weight"]
            assert result == ([], [])
            assert torch.equal(small[0].weight, big[0].weight)
            assert torch.equal(small[3].weight, before["3.weight"])

    def test_it_stays_strict_about_names(self, store):
        tensors = values(net(1, classes=1000))
        del tensors["0.bias"]
        put(store, tensors)
        with pytest.raises(IncompatibleStateError, match=r"missing in the state: 0\.bias"):
            store.load(net(2), KEY, ignore_mismatched_sizes=True)

    def test_one_dimension_fits_a_scalar_as_in_torch(self, store):
        class Scalar(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.zeros(()))

        put(store, {"scale": torch.tensor([3.0])})
        model = typed(Scalar())
        store.load(model, KEY)
        assert model.scale.item() == 3
        assert model.scale.shape == ()


class TestDtypeAndDevice:
    @pytest.mark.parametrize("assign", [False, True])
    def test_values_go_into_the_models_own_dtype(self, store, assign):
        put(store, net(1).to(torch.float64))
        model, torchs = net(2).half(), net(2).half()
        result = store.load(model, KEY, assign=assign)
        torchs.load_state_dict(net(1).to(torch.float64).state_dict())
        assert same(values(model), values(torchs))
        assert "0.weight" in result.cast_keys
        assert "1.num_batches_tracked" not in result.cast_keys  # int64 on both sides

    @pytest.mark.parametrize("assign", [False, True])
    def test_nothing_is_cast_without_need(self, store, assign):
        put(store, net(1).bfloat16())
        assert store.load(net(2).bfloat16(), KEY, assign=assign).cast_keys == []

    def test_onto_the_device_that_is_asked_for(self, store):
        put(store, net(1))
        tensors = store.load_state_dict(KEY, device="meta")
        assert {tensor.device.type for tensor in tensors.values()} == {"meta"}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    @pytest.mark.parametrize("assign", [False, True])
    def test_a_model_on_a_gpu_stays_there(self, store, assign):
        put(store, net(1))
        model = net(2).cuda()
        store.load(model, KEY, assign=assign)
        assert all(tensor.is_cuda for tensor in model.state_dict().values())
        assert same(values(model.cpu()), values(net(1)))


class Tied(nn.Module):
    """Two names for one tensor, and a third tensor that is merely equal."""

    def __init__(self, fill: float = 0.0):
        super().__init__()
        self.embed = nn.Embedding(90, 60)
        self.other = nn.Embedding(90, 60)
        self.head = nn.Linear(60, 90, bias=False)
        self.head.weight = self.embed.weight
        self.state_type = LINEAR
        with torch.no_grad():
            self.embed.weight.fill_(fill)
            self.other.weight.fill_(fill)


class TestTies:
    def test_tied_weights_are_stored_once(self, store):
        put(store, Tied(1.0))
        sizes = [path.stat().st_size for path in (store.folder / "objects").glob("*/*")]
        assert sum(size > 16_384 for size in sizes) == 1

    @pytest.mark.parametrize("assign", [False, True])
    def test_names_that_were_tied_are_tied_again_and_others_never(self, store, assign):
        put(store, Tied(1.0))
        model = Tied()
        store.load(model, KEY, assign=assign)
        assert model.head.weight is model.embed.weight
        assert model.embed.weight.data_ptr() != model.other.weight.data_ptr()
        with torch.no_grad():
            model.embed.weight.add_(1)
        assert bool((model.head.weight == 2).all())
        assert bool((model.other.weight == 1).all())

    @pytest.mark.parametrize("assign", [False, True])
    def test_names_that_were_not_tied_in_the_model_stay_two(self, store, assign):
        put(store, Tied(1.0))
        model = Tied()
        model.head.weight = nn.Parameter(torch.zeros(90, 60))
        store.load(model, KEY, assign=assign)
        assert model.head.weight is not model.embed.weight
        assert model.head.weight.data_ptr() != model.embed.weight.data_ptr()

    def test_a_tie_survives_though_the_state_has_one_of_the_names_only(self, store):
        tensors = values(Tied(1.0))
        del tensors["head.weight"]
        put(store, tensors)
        for model, assign, strict in (
            (Tied(), False, True),
            (Tied(), False, False),
            (Tied(), True, True),
            (Tied(), True, False),
            (on_meta(Tied), True, True),
            (on_meta(Tied), True, False),
        ):
            result = store.load(model, KEY, strict=strict, assign=assign)
            assert (result.missing_keys, result.tied_keys) == ([], ["head.weight"])
            assert model.head.weight is model.embed.weight
            assert bool((model.head.weight == 1).all())

    @pytest.mark.parametrize("rows", [90, 3])  # outside and inside the state object
    def test_different_values_for_what_is_one_tensor_are_refused_and_without_strict_the_last_wins(
        self, store, rows
    ):
        class Pair(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Parameter(torch.zeros(rows, 60))
                self.b = self.a
                self.state_type = LINEAR

        tensors = {"a": torch.ones(rows, 60), "b": torch.full((rows, 60), 5.0)}
        put(store, tensors)
        torchs = Pair()
        torchs.load_state_dict(tensors)
        for assign in (False, True):
            model = Pair()
            with pytest.raises(IncompatibleStateError, match="a and b"):
                store.load(model, KEY, assign=assign)
            assert not model.a.any()
            store.load(model, KEY, assign=assign, strict=False)
            assert same(values(model), values(torchs))
            assert model.a is model.b

    def test_buffers_tie_too_and_parameters_that_share_memory(self, store):
        class Shared(nn.Module):
            def __init__(self):
                super().__init__()
                memory = torch.zeros(90, 90)
                self.register_buffer("a", memory)
                self.register_buffer("b", memory)
                self.p = nn.Parameter(memory)
                self.q = nn.Parameter(memory)

        put(store, {name: torch.ones(90, 90) for name in "abpq"})
        model = typed(Shared())
        store.load(model, KEY, assign=True)
        assert len({tensor.data_ptr() for tensor in model.state_dict().values()}) == 1
        assert model.a is model.b
        assert model.p is not model.q


def on_meta(make):
    with torch.device("meta"):
        return make()


class TestAssign:
    def test_a_model_on_the_meta_device(self, store):
        put(store, net(1))
        model = on_meta(lambda: net(0))
        with pytest.raises(IncompatibleStateError, match="assign=True"):
            store.load(model, KEY)
        store.load(model, KEY, assign=True)
        assert same(values(model), values(net(1)))
        assert not any(tensor.is_meta for tensor in model.state_dict().values())

    def test_what_is_assigned_can_be_trained_and_the_store_never_changes(self, store, tmp_path):
        put(store, net(1, width=5000))  # large enough to be mapped
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        model = net(2, width=5000)
        store.load(model, KEY, assign=True)
        maps = Path("/proc/self/maps").read_text()
        assert str(store.folder / "objects") in maps
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.randn(8, 64)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].weight, net(1, width=5000)[0].weight)
        with torch.no_grad():
            model[1].running_mean.add_(1)
        assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        again = net(3, width=5000)
        store.load(again, KEY)
        assert same(values(again), values(net(1, width=5000)))

    def test_a_buffer_and_a_part_of_it_are_not_parted(self, store):
        class Parts(nn.Module):
            def __init__(self):
                super().__init__()
                whole = torch.zeros(4)
                self.register_buffer("whole", whole)
                self.register_buffer("part", whole[:2])
                self.register_buffer("beside", torch.zeros(8)[4:])
                self.state_type = LINEAR

        put(store, {"whole": torch.ones(4), "part": torch.ones(2), "beside": torch.ones(4)})
        model = Parts()
        with pytest.raises(IncompatibleStateError, match=r"assign=True would part: part, whole"):
            store.load(model, KEY, assign=True)
        store.load(model, KEY)
        assert bool((model.whole == 1).all())

    def test_what_required_gradients_does_so_afterwards(self, store):
        put(store, net(1))
        model = net(2)
        model[0].weight.requires_grad_(False)
        store.load(model, KEY, assign=True)
        assert not model[0].weight.requires_grad
        assert model[2].weight.requires_grad
        assert isinstance(model[0].weight, nn.Parameter)

    def test_a_loaded_model_can_be_copied_saved_and_deleted_from_under(self, store, tmp_path):
        put(store, net(1, width=5000))
        model = net(2, width=5000)
        store.load(model, KEY, assign=True)
        for path in (store.folder / "objects").glob("*/*"):
            path.unlink()
        assert same(values(copy.deepcopy(model)), values(net(1, width=5000)))
        torch.save(model.state_dict(), tmp_path / "x.pt")
        assert same(torch.load(tmp_path / "x.pt"), values(net(1, width=5000)))


class TestRefusedHalfWay:
    """A model that torch or its own rules refuse late has its values as before, bit for bit."""

    def refused(self, store, model, match=None, **options):
        before = values(model)
        with pytest.raises(IncompatibleStateError, match=match):
            store.load(model, KEY, **options)
        assert same(values(model), before)

    @pytest.mark.parametrize("assign", [False, True])
    def test_a_state_dict_that_leaves_names_out(self, store, assign):
        class Partial(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(80, 80), nn.Linear(80, 80)
                self.state_type = LINEAR

            def state_dict(self, *arguments, **options):
                full = super().state_dict(*arguments, **options)
                return {name: t for name, t in full.items() if name.startswith("a.")}

        put(store, Partial())
        self.refused(store, Partial(), match="b.weight", assign=assign)
        model = Partial()
        assert store.load(model, KEY, strict=False, assign=assign).missing_keys == []
        assert same(values(model), store.load_state_dict(KEY))

    def test_a_state_dict_method_without_options(self, store):
        class Plain(nn.Linear):
            state_type = LINEAR

            def state_dict(self):
                return {name: t.detach() for name, t in self.named_parameters()}

        model = Plain(80, 80)
        store.save(model, "a")
        for assign in (False, True):
            other = Plain(80, 80)
            store.load(other, KEY, assign=assign)
            assert same(values(other), values(model))

    def test_memory_that_cannot_be_written(self, store):
        class Expanded(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("a", torch.zeros(3))
                self.register_buffer("b", torch.zeros(1).expand(3))
                self.state_type = LINEAR

        put(store, {"a": torch.ones(3), "b": torch.ones(3)})
        self.refused(store, Expanded(), match="copied into: b")
        with torch.inference_mode():
            frozen = net(2)
        put(store, net(1))
        self.refused(store, frozen, match="nothing can be copied into")

    @pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no F4")
    def test_four_bits_cannot_be_cast(self, store):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("a", torch.zeros(4))
                self.register_buffer("b", torch.zeros(2, 2))
                self.state_type = LINEAR

        packed = torch.ones(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        put(store, {"a": torch.ones(4), "b": packed})
        self.refused(store, Two(), match="copied into: b")

    def test_a_parameter_of_its_own_kind_that_refuses(self, store):
        class Refusing(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, types, arguments=(), options=None):
                if function is torch.Tensor.copy_ and cls.armed:
                    raise RuntimeError("not for me")
                return super().__torch_function__(function, types, arguments, options or {})

        Refusing.armed = False
        model = typed(nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 80)))
        put(store, {name: tensor + 1 for name, tensor in model.state_dict().items()})
        kept = model[1].weight.detach().as_subclass(Refusing)
        model[1].weight = nn.Parameter(kept)
        before = model[0].weight.detach().clone()
        Refusing.armed = True
        with pytest.raises((IncompatibleStateError, RuntimeError)):
            store.load(model, KEY)
        Refusing.armed = False
        assert torch.equal(model[0].weight, before)

    def test_lazy_modules_are_lazy_again(self, store):
        def make():
            return typed(nn.ModuleDict({"lazy": nn.LazyLinear(80), "z": nn.Linear(2, 2)}))

        put(store, {"lazy.weight": torch.ones(80, 70), "lazy.bias": torch.ones(80)})
        model = make()
        with pytest.raises(IncompatibleStateError, match=r"z\.weight"):
            store.load(model, KEY)
        assert isinstance(model["lazy"].weight, nn.parameter.UninitializedParameter)
        store.load(model, KEY, strict=False)
        assert model["lazy"](torch.zeros(1, 70)).shape == (1, 80)


class TestUncommonModules:
    def test_modules_that_migrate_older_versions_leave_todays_alone(self, store):
        class Versioned(nn.Linear):
            _version = 2
            state_type = LINEAR

            def _load_from_state_dict(self, state_dict, prefix, metadata, *rest):
                if (metadata.get("version") or 1) < 2:
                    state_dict[prefix + "weight"] = state_dict[prefix + "weight"].t()
                super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

        model = Versioned(80, 80)
        put(store, model)
        for assign in (False, True):
            other = Versioned(80, 80)
            store.load(other, KEY, assign=assign)
            assert same(values(other), values(model))

    def test_extra_states_that_are_nothing_yet_are_not_tied(self, store):
        class Calibrated(nn.Module):
            def __init__(self, value):
                super().__init__()
                self.value = value

            def get_extra_state(self):
                return self.value

            def set_extra_state(self, state):
                self.value = state

        put(store, nn.Sequential(Calibrated(torch.tensor([1.0])), Calibrated(torch.tensor([2.0]))))
        for assign in (False, True):
            model = typed(nn.Sequential(Calibrated(None), Calibrated(None)))
            store.load(model, KEY, assign=assign)
            assert [part.value.item() for part in model] == [1.0, 2.0]

    def test_equal_tensors_that_a_hook_renames_stay_two(self, store):
        class Renaming(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Parameter(torch.zeros(100, 100))
                self.b = nn.Parameter(torch.zeros(100, 100))
                self.state_type = LINEAR
                self.register_load_state_dict_pre_hook(self.rename)

            def rename(self, module, state_dict, prefix, *rest):
                for name in "ab":
                    state_dict[name] = state_dict.pop(f"old_{name}")

        put(store, {"old_a": torch.ones(100, 100), "old_b": torch.ones(100, 100)})
        model = Renaming()
        store.load(model, KEY, assign=True)
        with torch.no_grad():
            model.a.add_(1)
        assert bool((model.b == 1).all())

    def test_rules_of_its_own_do_not_excuse_a_model_from_the_rest(self, store):
        """Names may be translated; memory that overlaps is parted all the same."""

        class Renaming(nn.Module):
            def __init__(self):
                super().__init__()
                whole = torch.zeros(4)
                self.register_buffer("whole", whole)
                self.register_buffer("part", whole[:2])
                self.state_type = LINEAR
                self.register_load_state_dict_pre_hook(self.rename)

            def rename(self, module, state_dict, *rest):
                for name in ("whole", "part"):
                    state_dict[name] = state_dict.pop(f"old_{name}")

        put(store, {"old_whole": torch.ones(4), "old_part": torch.ones(2)})
        with pytest.raises(IncompatibleStateError, match="would part"):
            store.load(Renaming(), KEY, assign=True)
        model = Renaming()
        store.load(model, KEY)
        assert bool((model.whole == 1).all())

    def test_a_post_hook_may_forgive_what_is_missing(self, store):
        model = net(1)
        tensors = values(model)
        del tensors["0.bias"]
        put(store, tensors)
        other = net(2)
        other.register_load_state_dict_post_hook(lambda _, keys: keys.missing_keys.clear())
        assert store.load(other, KEY).missing_keys == []
        assert torch.equal(other[0].weight, model[0].weight)

    @pytest.mark.parametrize("width", [80, 5000])
    def test_a_default_device_does_not_matter(self, store, width):
        put(store, {**values(net(1, width=width)), "empty": torch.zeros(0)})
        with torch.device("meta"):
            tensors = store.load_state_dict(KEY)
        assert same(tensors, {**values(net(1, width=width)), "empty": torch.zeros(0)})

    def test_lazy_modules_take_the_stored_shapes(self, store):
        put(store, nn.Linear(70, 300))
        for assign in (False, True):
            model = typed(nn.LazyLinear(300))
            store.load(model, KEY, assign=assign)
            assert model.weight.shape == (300, 70)
            assert model(torch.zeros(1, 70)).shape == (1, 300)

    def test_parametrised_modules(self, store):
        def make(seed):
            torch.manual_seed(seed)
            module = nn.utils.parametrizations.weight_norm(nn.Linear(80, 80))
            return typed(nn.utils.parametrizations.spectral_norm(module, "bias"))

        model = make(1)
        put(store, model)
        for assign in (False, True):
            other = make(2)
            store.load(other, KEY, assign=assign)
            assert same(values(other), values(model))
            assert torch.equal(other.weight, model.weight)

    def test_a_model_that_renames_as_it_loads_may(self, store):
        """weight_norm's own hook takes the names of its older version."""
        module = nn.utils.parametrizations.weight_norm(nn.Linear(80, 80))
        tensors = values(module)
        tensors["weight_g"] = tensors.pop("parametrizations.weight.original0") * 2
        tensors["weight_v"] = tensors.pop("parametrizations.weight.original1") * 2
        put(store, tensors)
        model = typed(nn.utils.parametrizations.weight_norm(nn.Linear(80, 80)))
        assert store.load(model, KEY) == ([], [])
        assert torch.equal(model.parametrizations.weight.original0, tensors["weight_g"])

    @pytest.mark.parametrize("assign", [False, True])
    def test_a_model_whose_own_load_refuses_gets_its_tensors_back(self, store, assign):
        class Refusing(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(80, 80)
                self.last = nn.Linear(80, 80)
                self.last.register_load_state_dict_pre_hook(self.refuse)
                self.state_type = LINEAR

            def refuse(self, *arguments):
                raise RuntimeError("not today")

        put(store, Refusing())
        model = Refusing()
        before, weight = values(model), model.first.weight
        with pytest.raises(IncompatibleStateError, match="not today"):
            store.load(model, KEY, assign=assign)
        assert same(values(model), before)
        assert model.first.weight is weight

    def test_a_renaming_model_is_strict_after_its_own_rules(self, store):
        tensors = values(nn.utils.parametrizations.weight_norm(nn.Linear(80, 80)))
        del tensors["bias"]
        put(store, tensors)
        model = typed(nn.utils.parametrizations.weight_norm(nn.Linear(80, 80)))
        before = values(model)
        with pytest.raises(IncompatibleStateError, match="bias"):
            store.load(model, KEY)
        assert same(values(model), before)
        assert store.load(model, KEY, strict=False).missing_keys == ["bias"]

    def test_tensors_as_extra_state(self, store):
        class Counting(nn.Module):
            def __init__(self, count):
                super().__init__()
                self.count = count
                self.state_type = LINEAR

            def get_extra_state(self):
                return torch.arange(self.count)

            def set_extra_state(self, state):
                self.count = len(state)

        put(store, Counting(5))
        for assign in (False, True):
            model = Counting(2)
            store.load(model, KEY, assign=assign)
            assert model.count == 5


def test_a_type_with_other_extras_is_compatible(store):
    model = with_state_type(net(1), StateType("pytorch", "net", ("cls10",)))
    key = store.save(model, "a")
    other = with_state_type(net(2), StateType("pytorch", "net"))
    store.load(other, key)
    assert same(values(other), values(model))
