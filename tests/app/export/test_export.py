"""A user's module becomes files that the service reads, or a message that says why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from app.export import export_model, stack_batches, write_dataset
from workers.errors import DatasetRefused, ModelRefused
from workers.graph.program import Program
from workers.intake.pt2 import read_model


class Classifier(nn.Module):
    """Dropout and batch normalization: both behave differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(photo)).relu().mean((2, 3))))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head((self.embed(ids) * mask[..., None]).sum(1))


class FixedBatch(nn.Module):
    """Works for batches of four only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.reshape(4, 6))


class Random(nn.Module):
    """Randomness that evaluation mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + torch.rand(6))


def seeded(module: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return module()


def outputs(path: Path, *inputs: torch.Tensor) -> torch.Tensor:
    return Program(read_model(path)).run(inputs)[0]


def test_any_batch_and_names(tmp_path: Path) -> None:
    module = seeded(Classifier).eval()
    exported = export_model(module, torch.randn(2, 3, 8, 8), tmp_path / "m.pt2")
    assert exported.input_names == ("photo",)
    assert exported.batch_size is None
    assert exported.notices == ()
    assert (exported.units, exported.weights) == (2, 4 * 3 * 9 + 20)
    photos = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(outputs(exported.path, photos), module(photos).detach())


def test_a_single_example_still_gives_any_batch(tmp_path: Path) -> None:
    exported = export_model(seeded(Classifier).eval(), torch.randn(1, 3, 8, 8), tmp_path / "m.pt2")
    assert exported.batch_size is None


def test_training_mode_is_left_as_it_was_but_not_exported(tmp_path: Path) -> None:
    module = seeded(Classifier).train()
    module.norm.eval()  # some people freeze batch normalization
    exported = export_model(module, torch.randn(2, 3, 8, 8), tmp_path / "m.pt2")
    assert module.training
    assert module.drop.training
    assert not module.norm.training
    assert "evaluation mode" in exported.notices[0]
    photos = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(outputs(exported.path, photos), module.eval()(photos).detach())


@pytest.mark.parametrize("by_name", [False, True])
def test_several_inputs_by_position_and_by_name(tmp_path: Path, by_name: bool) -> None:
    ids, mask = torch.arange(6).reshape(2, 3), torch.tensor([[1.0, 0, 1], [1, 1, 0]])
    # Deliberately not in the order of the signature: the file has the signature's.
    example = {"mask": mask, "ids": ids} if by_name else (ids, mask)
    module = seeded(TwoInputs).eval()
    exported = export_model(module, example, tmp_path / "m.pt2")
    assert exported.input_names == ("ids", "mask")
    torch.testing.assert_close(outputs(exported.path, ids, mask), module(ids, mask).detach())


def test_a_module_with_a_fixed_batch_is_exported_so_and_says_so(tmp_path: Path) -> None:
    exported = export_model(seeded(FixedBatch).eval(), torch.randn(4, 2, 3), tmp_path / "m.pt2")
    assert exported.batch_size == 4
    assert "always takes 4 samples" in exported.notices[0]


def test_a_module_that_draws_random_numbers_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused):
        export_model(seeded(Random).eval(), torch.randn(2, 6), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_survives_a_refusal(tmp_path: Path) -> None:
    target = tmp_path / "m.pt2"
    target.write_bytes(b"earlier")
    with pytest.raises(ModelRefused):
        export_model(seeded(Random).eval(), torch.randn(2, 6), target)
    assert target.read_bytes() == b"earlier"


def test_outputs_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda self, inputs: tuple(1.01 * o for o in run(self, inputs)))
    with pytest.raises(ModelRefused, match="does not reproduce"):
        export_model(seeded(Classifier).eval(), torch.randn(2, 3, 8, 8), tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (3, "not a tensor"),
        (torch.tensor(1.0), "not a tensor with a samples' axis"),
        ((torch.zeros(2, 3), torch.zeros(3, 3)), "share one samples' axis"),
        (torch.zeros(0, 3), "share one samples' axis"),
    ],
)
def test_bad_examples(tmp_path: Path, example: object, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        export_model(seeded(Classifier), example, tmp_path / "m.pt2")


def test_other_suffix(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"does not end in \.pt2"):
        export_model(seeded(Classifier), torch.zeros(2, 3, 8, 8), tmp_path / "m.onnx")


def test_dataset_round_trip(tmp_path: Path) -> None:
    photos = torch.randn(4, 8, 8, 3).permute(0, 3, 1, 2)  # not contiguous
    shapes = write_dataset(tmp_path / "d.safetensors", {"photo": photos}, labels=[0, 1, 2, 1])
    assert shapes == {"photo": (4, 3, 8, 8), "labels": (4,)}
    read = load_file(tmp_path / "d.safetensors")
    assert torch.equal(read["photo"], photos)
    assert read["labels"].tolist() == [0, 1, 2, 1]
    assert read["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "no inputs"),
        ({"x": torch.zeros(0, 2)}, "no samples"),
        ({"x": torch.zeros(2, 2), "y": torch.zeros(3, 2)}, "number of samples"),
        ({"x": torch.tensor(1.0)}, "number of samples"),
        ({"x": torch.tensor([[float("nan")]])}, "NaN"),
        ({"labels": torch.zeros(2)}, "labels"),
    ],
)
def test_bad_datasets_leave_nothing(tmp_path: Path, inputs: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(DatasetRefused, match=words):
        write_dataset(tmp_path / "d.safetensors", inputs)
    assert list(tmp_path.iterdir()) == []


def test_batches_are_joined_with_and_without_labels() -> None:
    xs, ys = torch.arange(6.0).reshape(6, 1), torch.arange(6)
    for batches in (
        {"x": xs, "labels": ys},
        [(xs[:4], ys[:4]), (xs[4:], ys[4:])],
        [[xs[:1], ys[:1]], [xs[1:], ys[1:]]],
        [{"x": xs[:4], "labels": ys[:4]}, {"x": xs[4:], "labels": ys[4:]}],
    ):
        inputs, labels = stack_batches(batches, ("x",))
        assert list(inputs) == ["x"]
        assert torch.equal(inputs["x"], xs)
        assert labels is not None
        assert torch.equal(labels, ys)
    inputs, labels = stack_batches([xs[:4], xs[4:]], ("x",))
    assert torch.equal(inputs["x"], xs)
    assert labels is None


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "no batch"),
        ([(torch.zeros(1), torch.zeros(1), torch.zeros(1))], "does not fit"),
        ([{"y": torch.zeros(1)}], "does not have the model's inputs"),
        ([{"x": torch.zeros(1), "labels": torch.zeros(1)}, {"x": torch.zeros(1)}], "lack an input"),
    ],
)
def test_bad_batches(batches: list[object], words: str) -> None:
    with pytest.raises(DatasetRefused, match=words):
        stack_batches(batches, ("x",))
