import io
import json
import shutil
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from supple.deploy import c_source, onnx_file, torch_file
from supple.deploy.checks import random_rows, runtimes_agree
from supple.deploy.contract import action_names, contract, observation_names
from supple.deploy.hostile import CannotRunError, refuse_foreign_code
from supple.deploy.plain import plain_policy
from supple.deploy.runtimes import (
    C_FLAGS,
    CRuntime,
    OnnxBatchRuntime,
    OnnxRuntime,
    TorchRuntime,
)
from supple.errors import InputError
from tests.deploy.small_bundles import agents, flashsac, plain_spec, ppo, robot_spec

AGENTS = agents()


def labels(spec, groups=("policy",)):
    return c_source.Labels(
        contract="0" * 64,
        action_names=action_names(spec),
        observation_names=observation_names(spec, groups),
        control_dt=spec.control_dt,
        version="0",
    )


def c_runtime(policy, spec, **options):
    source, header = (
        part(policy, labels(spec)).encode() for part in (c_source.source, c_source.header)
    )
    sizes = (1 if policy.choices else policy.actions, policy.actions)
    return CRuntime(source, header, policy.memory_width, sizes=sizes, **options)


KINDS = (
    *("flashsac", "ppo unclipped elu", "ppo squashed", "ppo without a normaliser"),
    *("ppo recurrent", "ppo recurrent discrete", "ppo clipped behind scale and offset"),
)
"""One of each kind of layer and output; ``test_plain.py`` has all."""


@pytest.mark.parametrize("name", KINDS)
def test_torch_onnx_and_c_agree_on_ten_thousand_observations(name):
    agent, spec = AGENTS[name]
    policy = plain_policy(agent, spec).eval()
    record = contract(policy, spec, groups=("policy",), origin={})
    memory = policy.memory_width
    runtimes = [
        TorchRuntime(torch_file.torch_bytes(policy, contract="{}"), memory),
        OnnxBatchRuntime(onnx_file.onnx_bytes(policy, batch=None, metadata={}), memory),
        OnnxRuntime(onnx_file.onnx_bytes(policy, batch=1, metadata={}), memory),
        c_runtime(policy, spec),
    ]
    found, answers = runtimes_agree(record, runtimes)
    assert found.status == "passed", found.detail
    assert answers is not None
    rows = random_rows(record, memory)
    inputs = [torch.from_numpy(each) for each in rows[: 2 if memory else 1]]
    assert np.allclose(answers.command, policy(*inputs)[1], atol=1e-5)
    assert answers.command.std(0).min() > 0.01
    for runtime in runtimes:
        runtime.close()


def test_runtimes_that_differ_a_little_too_much_do_not_agree():
    agent, spec = AGENTS["ppo"]
    policy: Any = plain_policy(agent, spec)
    record = contract(policy, spec, groups=("policy",), origin={})
    right = OnnxBatchRuntime(onnx_file.onnx_bytes(policy, batch=None, metadata={}), 0)
    with torch.no_grad():
        policy.body[0].weight[0, 0] += 1e-4
    wrong = OnnxBatchRuntime(onnx_file.onnx_bytes(policy, batch=None, metadata={}), 0)
    found, _ = runtimes_agree(record, [right, wrong])
    assert found.status == "FAILED" and "policy_batch.onnx differs" in found.detail


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("name", ["flashsac", "ppo recurrent", "ppo discrete"])
def test_generated_c_is_strict_c99(compiler, name):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed: apt install {compiler}")
    agent, spec = AGENTS[name]
    c_runtime(plain_policy(agent, spec), spec, compiler=compiler).close()
    assert {"-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"} <= set(C_FLAGS)


@pytest.fixture
def recurrent_source(tmp_path):
    """A folder with a generated policy and a program that steps it a hundred times."""
    agent, spec = AGENTS["ppo recurrent"]
    policy = plain_policy(agent, spec)
    (tmp_path / "policy.c").write_text(c_source.source(policy, labels(spec)))
    (tmp_path / "policy.h").write_text(c_source.header(policy, labels(spec)))
    (tmp_path / "main.c").write_text(
        '#include "policy.h"\n'
        f"int main(void) {{ supple_policy_state s; float o[{policy.inputs}] = {{0.5f}}, a[2], c[2];"
        " supple_policy_reset(&s); for (int i = 0; i < 100; ++i) supple_policy_step(&s, o, a, c);"
        " return 0; }\n"
    )
    return tmp_path


def test_generated_c_needs_nothing_but_three_functions_and_no_heap(recurrent_source):
    subprocess.run(["cc", *C_FLAGS, "-c", "policy.c"], cwd=recurrent_source, check=True)
    listed = subprocess.run(
        ["nm", "-u", "policy.o"], cwd=recurrent_source, check=True, capture_output=True, text=True
    ).stdout
    needed = {line.split()[-1] for line in listed.splitlines()}
    allowed = {"tanhf", "expf", "sqrtf", "memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}
    assert needed <= allowed | {"__stack_chk_fail"}
    assert "tanhf" in needed


def test_generated_c_stays_within_its_memory(recurrent_source):
    checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["cc", *C_FLAGS, "policy.c", "main.c", *checked, "-o", "program", "-lm"]
    subprocess.run(command, cwd=recurrent_source, check=True)
    subprocess.run([recurrent_source / "program"], check=True)


def test_numbers_too_large_for_a_layer_give_the_safe_action_in_c_too():
    # ReLU would hide the NaN that such numbers come to.
    agent, spec = AGENTS["ppo squashed"]
    policy: Any = plain_policy(agent, spec)
    with torch.no_grad():
        policy.normaliser.denominator.fill_(1e-3)
    obs = np.full((2, spec.observation["policy"]), 3e38, np.float32)
    obs[1] = 0.5
    expected = policy(torch.from_numpy(obs))[0].numpy()
    assert not expected[0].any() and expected[1].any()
    runtime = c_runtime(policy, spec)
    found = runtime.replay(obs, np.array([True, False]))
    runtime.close()
    np.testing.assert_allclose(found.action, expected, atol=1e-5)


def test_weight_tiles_by_hand():
    # Ten rows of two inputs: a tile of eight, input by input, then one padded with zeros.
    weight = np.arange(20, dtype=np.float32).reshape(10, 2)
    expected = [*range(0, 16, 2), *range(1, 16, 2), 16, 18, *[0] * 6, 17, 19, *[0] * 6]
    assert c_source.tiles(weight).tolist() == expected


def test_c_strings_hide_quotes_trigraphs_and_what_is_not_ascii():
    assert c_source._string('a"?\\é') == '"a\\042\\077\\134\\303\\251"'


def test_a_weight_that_is_not_finite_is_refused():
    spec = plain_spec()
    policy: Any = plain_policy(ppo(spec), spec)
    with torch.no_grad():
        policy.body[0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="weight that is not finite"):
        c_source.source(policy, labels(spec))


def test_a_layer_nobody_can_write_is_named():
    spec = plain_spec()
    policy: Any = plain_policy(ppo(spec), spec)
    policy.body.insert(1, torch.nn.GELU())
    with pytest.raises(InputError, match="cannot write GELU as C"):
        c_source.source(policy, labels(spec))
    with pytest.raises(InputError, match="cannot write GELU as ONNX"):
        onnx_file.onnx_bytes(policy, batch=1, metadata={})


def test_equal_policies_give_equal_files():
    spec = robot_spec()
    policy = plain_policy(flashsac(spec), spec).eval()
    for write in (
        lambda: torch_file.torch_bytes(policy, contract="{}"),
        lambda: onnx_file.onnx_bytes(policy, batch=1, metadata={"b": "1", "a": "2"}),
        lambda: c_source.source(policy, labels(spec)),
    ):
        assert write() == write()


def test_the_torch_archive_holds_no_pickle_and_no_path_of_this_machine():
    spec = robot_spec()
    data = torch_file.torch_bytes(plain_policy(flashsac(spec), spec).eval(), contract="{}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert not any(
        b"pickle" in name.encode() or content[:1] == b"\x80" for name, content in contents.items()
    )
    assert not any(__file__.rpartition("/tests/")[0].encode() in each for each in contents.values())


FOREIGN = {
    "system": ("void supple_policy_reset", "int x9 = system(0); void supple_policy_reset"),
    "#include <unistd.h>": ("#include <math.h>", "#include <unistd.h>"),
    "asm": ("static const", 'asm("int3"); static const'),
    "#": ("#include <math.h>", "%:include <math.h>"),
    "\\\\": ("static const", "sta\\\ntic const"),
    # A compiler splices lines before it looks for comments: their end is one to it alone.
    "*/": (
        "static const",
        "/* *\\\n/ int system(const char *); /* */ static const",
    ),
    "carriage return": ("static const", "/*\r*/ static const"),
    "??": ("static const", "/* ??/\n */ static const"),
    # A compiler sees a comment of one line and then code, a reader of /* */ one comment.
    "//": ("static const", "// /*\nextern int system(const char *);\n// */\nstatic const"),
}


@pytest.mark.parametrize("word", FOREIGN)
def test_c_that_could_call_out_is_never_compiled(word):
    spec = plain_spec()
    source = c_source.source(plain_policy(ppo(spec), spec), labels(spec))
    refuse_foreign_code(source.encode(), "policy.c")
    changed = source.replace(*FOREIGN[word], 1)
    assert changed != source
    with pytest.raises(CannotRunError, match="no generated policy does"):
        refuse_foreign_code(changed.encode(), "policy.c")


def archive_with(data, name, content):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member.endswith(name) else old.read(member))
    return out.getvalue()


def test_a_torch_archive_with_pickles_or_code_is_never_loaded():
    spec = plain_spec()
    data = torch_file.torch_bytes(plain_policy(ppo(spec), spec).eval(), contract="{}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        weights = archive.read("archive/data/weights/model_weights_config.json")
        model = archive.read("archive/models/model.json")
    pickled = weights.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    evil = model.replace(b"Symbol('", b"__import__('os')('", 1)
    assert pickled != weights and evil != model
    for name, content, text in (
        ("model_weights_config.json", pickled, "pickled objects"),
        ("models/model.json", evil, "for expr_str, which no exported policy does"),
        ("sample_inputs/model.pt", b"\x80\x04.", "pickled sample inputs"),
        ("weights/weight_0", b"PK\x03\x04", "pickled tensors"),
    ):
        with pytest.raises(CannotRunError, match=text):
            TorchRuntime(archive_with(data, name, content), 0)
    with pytest.raises(CannotRunError, match="no intact archive"):
        TorchRuntime(data[:-200], 0)


def renamed_input(model):
    text = json.dumps(model).replace('"obs_bd"', json.dumps("obs_bd=__import__('os').abort()"))
    return json.loads(text)


def other_operator(model):
    model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.serialization.os.system"
    return model


def operator_as_argument(model):
    argument = model["graph_module"]["graph"]["nodes"][0]["inputs"][0]
    argument["arg"] = {"as_operator": "torch.serialization.os.abort"}
    return model


def guard_of_ones_own(model):
    model["guards_code"] = ["L['obs_BD'].size()[0] == __import__('os').abort()"]
    return model


@pytest.mark.parametrize(
    "change", [renamed_input, other_operator, operator_as_argument, guard_of_ones_own]
)
def test_names_that_torch_would_build_a_program_of_are_refused(change):
    spec = plain_spec()
    data = torch_file.torch_bytes(plain_policy(ppo(spec), spec).eval(), contract="{}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        model = json.loads(archive.read("archive/models/model.json"))
    changed = json.dumps(change(model)).encode()
    with pytest.raises(CannotRunError, match="which no exported policy does"):
        TorchRuntime(archive_with(data, "models/model.json", changed), 0)
    more = io.BytesIO(data)
    with zipfile.ZipFile(more, "a") as archive:
        archive.writestr("archive/serialized_state_dict.pt", b"\x80\x04.")
    with pytest.raises(CannotRunError, match=r"it holds serialized_state_dict\.pt"):
        TorchRuntime(more.getvalue(), 0)


def test_a_graph_of_other_operators_is_never_run():
    spec = plain_spec()
    policy = plain_policy(ppo(spec), spec)
    model = onnx.load_model_from_string(onnx_file.onnx_bytes(policy, batch=1, metadata={}))
    assert {node.op_type for node in model.graph.node} <= onnx_file.OPERATORS
    model.graph.node[0].op_type = "If"
    with pytest.raises(CannotRunError, match="the operator If, no exported one does"):
        OnnxRuntime(model.SerializeToString(), 0)


@pytest.mark.parametrize(("status", "where"), [("0", "is not finite"), ("1", "is finite")])
def test_c_whose_status_would_not_brake_is_refused(status, where):
    spec = plain_spec()
    policy = plain_policy(ppo(spec), spec)
    source = c_source.source(policy, labels(spec)).replace("return !fine;", f"return {status};")
    header = c_source.header(policy, labels(spec)).encode()
    runtime = CRuntime(source.encode(), header, 0, sizes=(2, 2))
    obs = np.ones((2, 5), np.float32)
    obs[1, 3] = np.nan
    with pytest.raises(CannotRunError, match=f"returns {status} where the observation {where}"):
        runtime.replay(obs, np.array([True, False]))
    runtime.close()


@pytest.mark.parametrize("batch", [1, None])
def test_a_graph_tells_what_was_not_finite(batch):
    agent, spec = AGENTS["ppo recurrent"]
    policy = plain_policy(agent, spec)
    kind = OnnxRuntime if batch else OnnxBatchRuntime
    data = onnx_file.onnx_bytes(policy, batch=batch, metadata={})
    obs, memory = np.ones((4, 5), np.float32), np.zeros((4, 6), np.float32)
    obs[1, 2], obs[2], memory[3, 0] = np.nan, 3e38, np.inf
    said = kind(data, 6).finite(obs, memory)
    assert said is not None and said.tolist() == [True, False, False, False]
    model = onnx.load_model_from_string(data)  # of before there was such an output
    model.graph.output.pop()
    assert kind(model.SerializeToString(), 6).finite(obs, memory) is None


def test_outputs_are_taken_by_their_names():
    spec = plain_spec()
    policy = plain_policy(ppo(spec), spec)
    model = onnx.load_model_from_string(onnx_file.onnx_bytes(policy, batch=1, metadata={}))
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(reversed(outputs))
    obs = np.ones((1, 5), np.float32)
    found = OnnxRuntime(model.SerializeToString(), 0).one(obs, np.zeros((1, 0), np.float32))
    for one, expected in zip(found, policy(torch.from_numpy(obs)), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter is Linux's")
def test_c_that_gets_through_all_the_same_cannot_touch_anything(tmp_path, monkeypatch):
    """A word list cannot foresee every trick; what runs can only read its input and answer."""
    spec, mark = plain_spec(), tmp_path / "touched"
    policy = plain_policy(ppo(spec), spec)
    source = c_source.source(policy, labels(spec)).replace(
        "void supple_policy_reset(supple_policy_state *state) {",
        "extern int system(const char *);\n"
        "void supple_policy_reset(supple_policy_state *state) {"
        f' state->last_action[0] = (float)system("touch {mark}");',
    )
    header = c_source.header(policy, labels(spec)).encode()
    monkeypatch.setattr("supple.deploy.runtimes.refuse_foreign_code", lambda *_: None)
    runtime = CRuntime(source.encode(), header, 0, sizes=(2, 2))
    obs = np.ones((1, 5), np.float32)
    found = runtime.replay(obs, np.array([True]))
    runtime.close()
    assert np.allclose(found.action, policy(torch.from_numpy(obs))[0])
    assert not mark.exists()
    # The same code does it where nothing holds it.
    (tmp_path / "policy.c").write_text(source)
    (tmp_path / "policy.h").write_bytes(header)
    (tmp_path / "main.c").write_text(
        '#include "policy.h"\nint main(void) { supple_policy_state s; supple_policy_reset(&s); }\n'
    )
    subprocess.run(["cc", "policy.c", "main.c", "-o", "free", "-lm"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "free"], check=True)
    assert mark.exists()
