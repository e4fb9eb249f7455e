"""Nothing in the package runs what it reads: looked for in the source itself.

HTML is escaped (tests/diagnostics/test_report.py), archives that inflate are refused
(tests/deploy/test_verify.py), and mutated files of every kind are in tests/test_fuzz.py.
"""

import ast
import json
import struct
from pathlib import Path

import pytest

import supple
from supple import checkpoint
from supple.errors import InputError
from supple.signed_json import UNSIGNED, sha256, sign

PACKAGE = Path(supple.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
"""Whose reading runs what was written."""
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    *("os.system", "os.popen", "torch.load", "torch.save", "torch.normal", "torch.jit.load"),
    *("numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("zipfile.extractall", "tarfile.open", "shutil.unpack_archive"),
}
"""``torch.normal`` is what fails with "expects all elements of std >= 0.0"."""


def dotted(node):
    """``a.b.c`` of an expression, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def faults(text):
    """What the source says that it should not."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [item.name for item in node.names if item.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in CALLS | METHODS or name.endswith((".extractall", ".extract")):
                found.append(name)
            options = {item.arg: item.value for item in node.keywords}
            for option in ("shell", "allow_pickle"):
                value = options.get(option)
                if value is not None and getattr(value, "value", None) is not False:
                    found.append(f"{name}({option}=)")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("bare except")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles_evaluates_or_asks_a_shell(file):
    assert faults(file.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",  # nor does anything need it
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "archive.extractall(folder)",
        "torch.normal(mean, std)",
        "try:\n    pass\nexcept:\n    pass",
    ],
)
def test_what_is_looked_for_is_found(text):
    assert faults(text)


def test_methods_called_eval_are_fine():
    assert faults("network.eval()\nsubprocess.run(command, shell=False)") == []


# --- files that want too much ------------------------------------------------------------------


def signed(folder, **changes):
    """A checkpoint whose manifest stands by what it says."""
    path = checkpoint.save(folder, 1, {}, {"a": 1})
    manifest = json.loads((path / checkpoint.MANIFEST).read_text()) | changes
    manifest["sha256"] = UNSIGNED
    (path / checkpoint.MANIFEST).write_bytes(sign(json.dumps(manifest)))
    return path


def header_of(length):
    """A tensor file that claims a header of so many bytes."""
    return struct.pack("<Q", length) + b"{}"


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9])
def test_a_huge_header_is_refused(tmp_path, length):
    data = header_of(length)
    entry = {"bytes": len(data), "sha256": sha256(data)}
    path = signed(tmp_path, files={"x.safetensors": entry})
    (path / "x.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="is not safetensors"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", "a\0b"])
def test_names_lead_nowhere_else(tmp_path, name):
    path = signed(tmp_path, files={name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(InputError, match="plain name of a file"):
        checkpoint.load(path)


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_MANIFEST_BYTES", 1000)
    path = signed(tmp_path, header={"long": "x" * 2000})
    with pytest.raises(InputError, match=r"manifest\.json has \d+ bytes: expected at most 1000"):
        checkpoint.load(path)


def test_shapes_cannot_ask_for_more_memory_than_the_file_has(tmp_path):
    leaf = {"$tensor": "t0", "dtype": "float32", "shape": [2**40]}
    path = signed(tmp_path, state={"a": leaf})
    with pytest.raises(InputError):
        checkpoint.load(path)
