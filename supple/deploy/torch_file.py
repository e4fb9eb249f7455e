"""The policy as ``torch.export``'s archive, ``policy.pt2``: a graph in JSON and raw weights."""

from __future__ import annotations

import io
import warnings

import torch

from supple.deploy.plain import PlainPolicy

CONTRACT_FILE = "contract.json"


def torch_bytes(policy: PlainPolicy, *, contract: str) -> bytes:
    """The file's content; any number of rows may enter.

    Args:
        policy: what to write.
        contract: canonical JSON of the manifest's contract, stored beside the graph.
    """
    example: tuple[torch.Tensor, ...] = (torch.zeros(2, policy.inputs),)
    shapes = {"obs_BD": {0: torch.export.Dim("batch", min=1)}, "memory_BH": None}
    if policy.memory is not None:
        example += (torch.zeros(2, policy.memory_width),)
        shapes["memory_BH"] = shapes["obs_BD"]
    else:
        del shapes["memory_BH"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its pytrees
        program = torch.export.export(policy.eval(), example, dynamic_shapes=shapes)
        program.example_inputs = None  # the only part that torch would pickle
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of the exporting machine
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={CONTRACT_FILE: contract})
    return file.getvalue()
