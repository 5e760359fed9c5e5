"""Position masks in data files: what they may look like."""

import pytest
import torch
from safetensors.torch import save_file

from workers.contracts import InputInfo
from workers.errors import DatasetRefused
from workers.intake.dataset import read_dataset

INPUTS = (InputInfo(name="x", dtype="float32", shape=(None, 6)),)
OUTPUTS = (InputInfo(name="y", dtype="float32", shape=(None, 5, 3)),)


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (torch.ones(4, 5), "mask-dtype"),
        (torch.ones(4, 6, dtype=torch.uint8), "mask-shape"),
        (torch.ones(4, 5, 3, dtype=torch.uint8), "mask-shape"),
        (torch.zeros(4, 5, dtype=torch.bool), "empty-mask"),
    ],
)
def test_a_mask_that_breaks_a_rule_is_refused(tmp_path, mask, rule):
    save_file({"x": torch.zeros(4, 6), "position_mask": mask}, tmp_path / "data")
    with pytest.raises(DatasetRefused) as caught:
        read_dataset(tmp_path / "data", INPUTS, outputs=OUTPUTS)
    assert (caught.value.extra["rule"], caught.value.field) == (rule, "position_mask")


def test_a_mask_says_which_positions_count(tmp_path):
    mask = torch.tensor([[1, 0, 2, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.int8)
    save_file({"x": torch.zeros(2, 6), "position_mask": mask}, tmp_path / "data")
    found = read_dataset(tmp_path / "data", INPUTS, outputs=OUTPUTS).mask
    assert found is not None
    assert found.required
    assert torch.equal(found.values, mask.bool())
