"""Padding never counts: a padded batch gives the numbers of the samples without their padding."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workers.contracts import Candidate, MeasureRequest, Metric, PlanRequest, Scheme
from workers.errors import DatasetRefused
from workers.intake.dataset import read_dataset
from workers.intake.models import read_model
from workers.sensitivity import divergence, metrics, session
from workers.sensitivity.engine import measure
from workers.verify.plan import measure_plan

LENGTHS = (3, 7, 5, 7)
POSITIONS = 7
CLASSES = 11
CANDIDATES = [Candidate(bits=bits, scheme=Scheme.parse("channel-symmetric")) for bits in (2, 4)]


class Tagger(nn.Module):
    """Logits per token from a model whose attention sees no padding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, input_ids, attention_mask):
        states = torch.tanh(self.mix(self.embed(input_ids)))
        weights = attention_mask[:, :, None].to(states.dtype)
        context = (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return self.head(states + context)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tagger") / "tagger.pt2"
    from torch.export import Dim, export

    ids = torch.zeros(2, 5, dtype=torch.int64)
    dims = {0: Dim("batch", min=1), 1: Dim("positions", min=2)}
    program = export(Tagger().eval(), (ids, torch.ones_like(ids)), dynamic_shapes=(dims, dims))
    program.example_inputs = None
    torch.export.save(program, path)
    return path


def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, CLASSES, (len(LENGTHS), POSITIONS), generator=generator)


def padded(**more):
    mask = (torch.arange(POSITIONS) < torch.tensor(LENGTHS)[:, None]).to(torch.int64)
    return {"input_ids": tokens(), "attention_mask": mask, **more}


def write(folder, name, tensors):
    path = folder / name
    save_file(tensors, path)
    return path


def entries(model, data, metric):
    session.forget()
    wanted = tuple((unit, c) for unit in ("mix.weight", "head.weight") for c in CANDIDATES)
    request = MeasureRequest(
        model_path=str(model), calibration_path=str(data), metric=metric, wanted=wanted, batch_size=3
    )
    return [(entry.mean, entry.samples) for entry in measure(request)]


@pytest.mark.parametrize("metric", [Metric.KL, Metric.LOSS])
def test_a_padded_batch_costs_what_the_samples_cost_alone(model, tmp_path, metric):
    labels = (tokens() + 1) % CLASSES
    together = entries(model, write(tmp_path, "all", padded(labels=labels)), metric)
    alone = []
    for sample, length in enumerate(LENGTHS):
        # Without its padding and without an attention mask, which may be left out.
        cut = {
            "input_ids": tokens()[sample : sample + 1, :length].contiguous(),
            "labels": labels[sample : sample + 1, :length].contiguous(),
        }
        alone.append(entries(model, write(tmp_path, f"{sample}", cut), metric))
    for entry, (mean, samples) in enumerate(together):
        assert samples == len(LENGTHS)
        expected = sum(single[entry][0] for single in alone) / len(LENGTHS)
        assert mean == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_squared_errors_count_real_positions_only(model, tmp_path):
    """Against a loop over the positions of the eager outputs."""
    (mean, _) = entries(model, write(tmp_path, "all", padded()), Metric.MSE)[0]
    loaded = session.load_model(str(model), "cpu")
    data = padded()
    unit = loaded.table.unit("mix.weight")
    from workers.quant import fake_quantize

    weight = fake_quantize(
        loaded.program.constant(unit.node), CANDIDATES[0], output_channel_axis=0, group_axis=1, name="mix"
    )
    inputs = [data["input_ids"], data["attention_mask"]]
    (before,) = loaded.program.run(inputs)
    (after,) = loaded.program.run(inputs, loaded.program.override(unit.changes(weight)))
    real = [before[s, :length].double() for s, length in enumerate(LENGTHS)]
    errors = [
        float((after[s, :length].double() - real[s]).square().mean()) for s, length in enumerate(LENGTHS)
    ]
    variance = float(torch.cat([r.flatten() for r in real]).var(correction=0))
    assert mean == pytest.approx(sum(errors) / len(errors) / variance, rel=1e-6)


def test_values_under_the_padding_do_not_matter(model, tmp_path):
    other = padded()
    other["input_ids"] = torch.where(other["attention_mask"] == 1, other["input_ids"], 4)
    one = entries(model, write(tmp_path, "one", padded()), Metric.KL)
    two = entries(model, write(tmp_path, "two", other), Metric.KL)
    assert [mean for mean, _ in two] == pytest.approx([mean for mean, _ in one], rel=1e-6)


def test_a_position_mask_serves_any_model_and_wins_over_the_attention_mask(model, tmp_path):
    half = torch.ones(len(LENGTHS), POSITIONS, dtype=torch.uint8)
    half[:, 4:] = 0
    whole = padded(attention_mask=torch.ones(len(LENGTHS), POSITIONS, dtype=torch.int64))
    session.forget()
    path = write(tmp_path, "half", whole | {"position_mask": half})
    request = PlanRequest(model_path=str(model), data_path=str(path), choices={"head.weight": CANDIDATES[0]})
    found = measure_plan(request)
    loaded = session.load_model(str(model), "cpu")
    batches = session.load_batches(str(path), loaded, session.selection_of(request))
    (output,) = loaded.program.run(batches.inputs_of(0))
    assert torch.equal(batches.counted_of(0, output), half.bool())
    assert found["kl"].samples == len(LENGTHS)
    unmasked = measure_plan(
        PlanRequest(
            model_path=str(model),
            data_path=str(write(tmp_path, "whole", whole)),
            choices={"head.weight": CANDIDATES[0]},
        )
    )
    assert found["kl"].mean != unmasked["kl"].mean
    assert found["top1_agreement"].mean * 4 * len(LENGTHS) == pytest.approx(
        round(found["top1_agreement"].mean * 4 * len(LENGTHS))
    )


def test_metrics_with_a_mask_are_those_of_the_positions_that_count():
    generator = torch.Generator().manual_seed(2)
    reference, output = (torch.randn(3, 5, 7, generator=generator) for _ in range(2))
    counted = torch.rand(3, 5, generator=generator) < 0.6
    counted[:, 0] = True
    labels = torch.randint(0, 7, (3, 5), generator=generator)
    labels[0, 0] = metrics.IGNORED_LABEL
    spoilt = torch.where(counted[..., None], output, torch.nan)

    def kept(values):
        return [values[sample][counted[sample]][None] for sample in range(3)]

    pairs = [
        (metrics.kl, (reference,), ()),
        (divergence.kl, (reference,), ()),
        (metrics.squared_error, (reference,), ()),
        (metrics.top1_agreement, (reference,), ()),
        (metrics.loss_rise, (reference,), (labels,)),
        (metrics.cross_entropy, (), (labels,)),
        (metrics.top1_accuracy, (), (labels,)),
    ]
    for function, before, after in pairs:
        found = function(*before, spoilt, *after, counted=counted)
        parts = zip(*(kept(value) for value in (*before, output, *after)), strict=True)
        expected = torch.cat([function(*part) for part in parts])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=function.__name__)


def test_differences_that_are_handed_on_have_the_weights_of_their_positions():
    generator = torch.Generator().manual_seed(3)
    reference, output = (torch.randn(3, 5, 7, generator=generator) for _ in range(2))
    counted = torch.zeros(3, 5, dtype=torch.bool)
    counted[:, 1:3] = True
    rows = []
    divergence.differences(reference, output, lambda _, change: rows.append(change), counted)
    squares = torch.cat(rows).reshape(3, 5, 7).square().mean((1, 2)).double()
    torch.testing.assert_close(squares, metrics.squared_error(reference, output, counted), rtol=1e-5, atol=0)


REFUSED = [
    ("mask-dtype", {"position_mask": torch.ones(4, 7)}),
    ("empty-mask", {"position_mask": torch.zeros(4, 7, dtype=torch.uint8)}),
    ("empty-mask", {"attention_mask": torch.zeros(4, 7, dtype=torch.int64)}),
    ("input-names", {"attention_masks": torch.ones(4, 7, dtype=torch.int64)}),
]


@pytest.mark.parametrize(("rule", "tensors"), REFUSED)
def test_a_mask_that_breaks_a_rule_is_refused(model, tmp_path, rule, tensors):
    path = write(tmp_path, "data", padded(**tensors))
    with pytest.raises(DatasetRefused) as caught:
        read_dataset(path, read_model(model).inputs)
    assert caught.value.extra["rule"] == rule


def test_a_position_mask_of_other_positions_is_refused(model, tmp_path):
    from workers.graph.describe import describe

    path = write(tmp_path, "data", padded(position_mask=torch.ones(4, 7, 2, dtype=torch.uint8)))
    described = describe(read_model(model))
    with pytest.raises(DatasetRefused) as caught:
        read_dataset(path, described.inputs, outputs=described.outputs)
    assert caught.value.extra["rule"] == "mask-shape"
    with pytest.raises(DatasetRefused, match="does not fit outputs"):
        entries(
            model,
            write(
                tmp_path,
                "short",
                padded(
                    position_mask=torch.zeros(4, 6, dtype=torch.uint8).index_fill(1, torch.tensor([0]), 1)
                ),
            ),
            Metric.KL,
        )
