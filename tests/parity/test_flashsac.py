import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.parity.flashsac_recording import check

DATA = Path(__file__).parent / "data"
RECORDINGS = sorted(DATA.glob("flashsac_updates_*.safetensors"))
if os.environ.get("SUPPLE_PARITY_FLASHSAC"):
    RECORDINGS.append(Path(os.environ["SUPPLE_PARITY_FLASHSAC"]))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_updates_match_the_recorded_reference(path):
    check(path)


def altered(path, tmp_path, edit):
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = json.loads(file.metadata()["meta"])
    edit(meta, tensors)
    copy = tmp_path / path.name
    save_file(tensors, copy, metadata={"meta": json.dumps(meta)})
    return copy


def shift_a_loss(meta, tensors):
    meta["losses"][-1]["critic/loss"] += 1e-3


def shift_a_running_buffer(meta, tensors):
    last = meta["updates"] - 1
    tensors[f"after{last}/critic.block.0.norm1.running_mean"][1, 3] += 1e-3


def shift_an_evaluation_output(meta, tensors):
    tensors["eval/q"][0, 5] += 1e-3


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (shift_a_loss, "critic/loss"),
        (shift_a_running_buffer, "norm1.running_mean"),
        (shift_an_evaluation_output, "q:"),
    ],
)
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_one_recorded_number_off_by_a_thousandth_fails(path, edit, names, tmp_path):
    with pytest.raises(AssertionError, match=names):
        check(altered(path, tmp_path, edit))
