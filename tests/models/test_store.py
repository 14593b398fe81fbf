"""Models on disk: what was saved is what is opened, and whatever does not match its card is refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from models import catalogue
from models.architectures import ARCHITECTURES, check_tensors, make_network
from models.card import Card, CardDraft
from models.catalogue import card_path, find, use_directory, weights_path
from models.errors import CardError, ModelError, UnknownModelError, WeightsError
from models.store import open_model, save_card, save_model, verify

Drafts = Callable[..., CardDraft]


def rewrite(directory: Path, card: Card, **changes: object) -> None:
    """Write the card with other values, whether or not they make sense."""
    values = {**json.loads(card.json_text()), **changes}
    card_path(directory, card.title).write_text(json.dumps(values))


def replace_weights(directory: Path, card: Card, tensors: dict[str, Tensor]) -> None:
    """Other tensors with a card that vouches for them."""
    path = weights_path(directory, card.title)
    text = json.dumps({"architecture": card.architecture, "configuration": card.configuration}, sort_keys=True)
    save_file(tensors, path, {"echotrain": text})
    data = path.read_bytes()
    rewrite(directory, card, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def test_what_was_saved_is_what_is_opened(saved: Card, tensors: dict[str, Tensor]) -> None:
    model = open_model("tiny-line")
    assert model.card == saved
    assert model.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(model.tensors[name], tensor)
    network = model.build()
    assert torch.equal(network(torch.eye(3)), torch.eye(3) @ tensors["weight"].T + tensors["bias"])
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert verify() == {}


def test_a_network_of_ones_own_shares_nothing_with_the_next(saved: Card) -> None:
    model = open_model(saved.title)
    before = model.tensors["weight"].clone()
    for parameter in model.build().parameters():
        parameter.fill_(7)
    assert torch.equal(open_model(saved.title).build().state_dict()["weight"], before)


def test_building_leaves_the_random_numbers_as_they_were(saved: Card) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    open_model(saved.title).build()
    assert torch.equal(torch.rand(3), expected)


def test_a_model_opened_in_inference_mode_gives_gradients_outside_it(saved: Card) -> None:
    with torch.inference_mode():
        model = open_model(saved.title)
        network = model.build()
    image = torch.ones(3, requires_grad=True)
    (network(image).sum() + (image * model.tensors["weight"]).sum()).backward()
    assert torch.equal(image.grad, 2 * model.tensors["weight"].sum(0))


def test_a_verified_model_is_opened_once_and_a_saved_one_anew(
    directory: Path, saved: Card, make_draft: Drafts, tensors: dict[str, Tensor]
) -> None:
    first = open_model("tiny-line")
    assert open_model("tiny-line@1.0.0") is first
    same = directory / ".." / directory.name
    save_model(same, make_draft(), {name: tensor + 1 for name, tensor in tensors.items()})
    assert open_model("tiny-line").card.sha256 != saved.sha256


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, directory: Path, make_draft: Drafts, tensors) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, make_draft(), dict(sorted(tensors.items(), reverse=name == "b")))
    for path in (card_path, weights_path):
        assert path(tmp_path / "a", "tiny-line@1.0.0").read_bytes() == (
            path(tmp_path / "b", "tiny-line@1.0.0").read_bytes()
        )


def test_a_name_alone_means_the_highest_version_by_its_numbers(directory: Path, make_draft: Drafts, tensors) -> None:
    for version in ("1.9.0", "1.10.0", "0.99.0"):
        save_model(directory, make_draft(version=version), tensors)
    assert open_model("tiny-line").card.version == "1.10.0"
    assert open_model("tiny-line@0.99.0").card.version == "0.99.0"


def test_weights_whose_card_is_not_written_yet_hide_no_older_version(directory: Path, saved: Card) -> None:
    weights_path(directory, "tiny-line@2.0.0").write_bytes(b"being saved")
    assert open_model("tiny-line").card.version == "1.0.0"
    with pytest.raises(CardError, match=r"tiny-line@2.0.0: it has no card; a model without one is not served"):
        open_model("tiny-line@2.0.0")


def test_a_name_that_no_model_has_is_told_with_those_there_are(saved: Card) -> None:
    with pytest.raises(UnknownModelError, match=r"there is no model 'other'; models here: .*tiny-line@1.0.0"):
        open_model("other")
    with pytest.raises(UnknownModelError, match=r"no model 'tiny-line@1\.0\.1'"):
        open_model("tiny-line@1.0.1")


@given(
    wanted=st.text(max_size=40) | st.sampled_from(["../cards/tiny-line", "/etc/passwd", "a\0b", "tiny-line@1.0.0\n"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_asked_for_selects_a_name_and_is_never_a_path(saved: Card, wanted: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        find(wanted)
    assert str(caught.value).isprintable()


def test_one_other_byte_of_the_weights_is_noticed(directory: Path, saved: Card) -> None:
    path = weights_path(directory, saved.title)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(WeightsError, match=f"SHA-256 {found}, the card says {saved.sha256}"):
        open_model("tiny-line")
    assert saved.title in verify()


def test_weights_of_another_size_are_refused_before_they_are_read(directory: Path, saved: Card) -> None:
    with weights_path(directory, saved.title).open("ab") as file:
        file.write(b"more")
    with pytest.raises(WeightsError, match=f"have {saved.bytes + 4} bytes, the card says {saved.bytes}"):
        open_model("tiny-line")


def test_a_file_over_the_limit_is_refused_by_its_size(
    directory: Path, saved: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "MOST_WEIGHTS_BYTES", 100)
    with pytest.raises(WeightsError, match=rf"have {saved.bytes} bytes, at most 100 may be"):
        open_model("tiny-line")


def test_a_card_without_weights_is_refused(directory: Path, saved: Card) -> None:
    weights_path(directory, saved.title).unlink()
    with pytest.raises(WeightsError, match=r"tiny-line@1.0.0: it has a card but no weights"):
        open_model("tiny-line")


def test_what_is_no_safetensors_is_refused_even_with_its_digest(directory: Path, saved: Card) -> None:
    data = b"\x80\x04 a pickle would begin so"
    weights_path(directory, saved.title).write_bytes(data)
    rewrite(directory, saved, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    with pytest.raises(WeightsError, match="are no safetensors"):
        open_model("tiny-line")


def test_weights_that_a_link_takes_from_elsewhere_are_refused(directory: Path, saved: Card, tmp_path: Path) -> None:
    path = weights_path(directory, saved.title)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="outside the directory of models"):
        open_model("tiny-line")


def test_a_pipe_in_place_of_weights_does_not_block(directory: Path, saved: Card) -> None:
    path = weights_path(directory, saved.title)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(WeightsError, match="it has a card but no weights"):
        open_model("tiny-line")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {"weight": t["weight"]}, "tensors are missing: bias"),
        (lambda t: t | {"scale": torch.ones(1)}, "the network has no tensors scale"),
        (lambda t: t | {"weight": t["weight"].double()}, r"weight is float64 \(2, 3\), expected float32 \(2, 3\)"),
        (lambda t: t | {"bias": torch.ones(3)}, r"bias is float32 \(3,\), expected float32 \(2,\)"),
        (lambda t: t | {"bias": torch.tensor([0.0, torch.nan])}, "bias holds values that are not finite"),
        (lambda t: t | {"bias": torch.tensor([0.0, torch.inf])}, "bias holds values that are not finite"),
    ],
)
def test_other_tensors_than_the_network_has_are_neither_opened_nor_saved(
    directory: Path, saved: Card, make_draft: Drafts, tensors: dict[str, Tensor], change, words: str
) -> None:
    replace_weights(directory, saved, change(tensors))
    with pytest.raises(WeightsError, match=words):
        open_model("tiny-line")
    with pytest.raises(WeightsError, match=words):
        save_model(directory, make_draft(version="2.0.0"), change(tensors))
    assert not card_path(directory, "tiny-line@2.0.0").exists()
    assert not weights_path(directory, "tiny-line@2.0.0").exists()


def test_many_problems_are_counted_not_listed() -> None:
    network = make_network_of(8)
    wrong = {name: tensor.double() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"and 13 more$"):
        check_tensors("x@1.0.0", network, wrong)


def make_network_of(n_layers: int) -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(n_layers)))


def test_a_configuration_that_was_changed_behind_the_weights_is_noticed(directory: Path, saved: Card) -> None:
    rewrite(directory, saved, configuration={"in_features": 3, "out_features": 2, "bias": True})
    with pytest.raises(WeightsError, match="another configuration"):
        open_model("tiny-line")


def test_an_architecture_is_known_and_takes_its_configuration(directory: Path, make_draft: Drafts, tensors) -> None:
    with pytest.raises(
        CardError, match=r"tiny-line@1\.0\.0: its architecture os\.system is unknown; known here: .*line"
    ):
        save_model(directory, make_draft(architecture="os.system"), tensors)
    with pytest.raises(CardError, match="does not take its configuration"):
        save_model(directory, make_draft(configuration={"depth": 3}), tensors)


def test_an_architecture_that_gives_no_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "text", "builtins:dict")
    with pytest.raises(CardError, match="gives a dict, not a network"):
        make_network("text", {})


def test_weights_that_change_between_digest_and_tensors_are_noticed(
    directory: Path, saved: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_and_swap(entry: catalogue.Entry, card: Card) -> None:
        catalogue.check_weights(entry, card)
        other = entry.weights.with_suffix(".new")
        other.write_bytes(entry.weights.read_bytes())
        other.replace(entry.weights)

    monkeypatch.setattr("models.store.check_weights", check_and_swap)
    with pytest.raises(WeightsError, match="changed while they were read"):
        open_model("tiny-line")


def test_tensors_outlive_a_file_that_is_overwritten(directory: Path, saved: Card, tensors: dict[str, Tensor]) -> None:
    model = open_model("tiny-line")
    with weights_path(directory, saved.title).open("r+b") as file:
        file.write(bytes(saved.bytes))
    assert torch.equal(model.tensors["weight"], tensors["weight"])


def test_a_card_is_written_after_its_weights_and_nothing_is_left_of_a_failure(
    directory: Path, make_draft: Drafts, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[str] = []

    def fail_at_the_card(self: Path, target: Path) -> Path:
        replaced.append(target.suffix)
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        return self.rename(target)

    monkeypatch.setattr(Path, "replace", fail_at_the_card)
    with pytest.raises(ModelError, match=r"tiny-line@1.0.0 cannot be written: No space left on device"):
        save_model(directory, make_draft(), tensors)
    monkeypatch.undo()
    assert replaced == [".safetensors", ".json"]
    assert [path.name for path in directory.rglob("*") if path.is_file()] == ["tiny-line@1.0.0.safetensors"]


def test_a_calibration_is_added_to_a_card_without_its_weights_changing(directory: Path, saved: Card) -> None:
    record = {"pipeline": "sense", "mode": "posterior", "factor": 1.5, "level": 0.9, "n_scans": 20}
    open_model("tiny-line")
    save_card(directory, saved.revised(calibration=[record]))
    card = open_model("tiny-line").card
    assert card.sha256 == saved.sha256
    found = card.calibration_for("sense", "posterior")
    assert found is not None
    assert found.factor == 1.5
    assert card.calibration_for("sense", "quick") is None
    with pytest.raises(WeightsError, match="SHA-256"):
        save_card(directory, saved.revised(sha256="0" * 64))


def test_details_are_the_provenance_of_images(saved: Card) -> None:
    assert open_model("tiny-line").details() == {
        "ReconModel": "tiny-line",
        "ReconModelVersion": "1.0.0",
        "ReconModelDigest": saved.sha256,
    }


def test_a_directory_of_ones_own_that_is_missing_is_not_passed_over(tmp_path: Path) -> None:
    use_directory(tmp_path / "nowhere")
    try:
        with pytest.raises(ModelError, match=r"models\.directory names does not exist") as caught:
            open_model("anything")
        assert str(tmp_path) not in str(caught.value)
    finally:
        use_directory(None)


def test_one_name_in_two_directories_is_no_choice(
    directory: Path, saved: Card, tmp_path: Path, make_draft: Drafts, tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "SHIPPED", tmp_path / "shipped")
    save_model(tmp_path / "shipped", make_draft(), tensors)
    with pytest.raises(ModelError, match="comes with this program too"):
        open_model("tiny-line")
    save_model(directory, make_draft(version="1.0.1"), tensors)
    assert open_model("tiny-line").card.version == "1.0.1"
    assert list(verify()) == ["tiny-line@1.0.0"]


def test_a_file_that_belongs_to_no_model_is_named(directory: Path, saved: Card) -> None:
    (directory / "cards" / "Energy.json").write_text("{}")
    (directory / "weights" / "tiny-line@1.0.0.pt").write_bytes(b"")
    (directory / "weights" / ".tiny-line@1.0.0.safetensors.7.part").write_bytes(b"")
    assert set(verify()) == {"Energy.json", "tiny-line@1.0.0.pt"}
