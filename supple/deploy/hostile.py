"""What is refused before torch, onnxruntime or a compiler reads it: bundles come from anywhere.

torch builds Python source from a ``.pt2``'s names and looks its operators up from ``torch`` on, so
that an archive is as good as a program. Only what ``export`` writes is let through.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from functools import partial
from typing import Any

from supple import signed_json
from supple.deploy import onnx_file


class CannotRunError(Exception):
    """This runtime is not here, or does not take the bundle's file; says why in one line."""


short = partial(signed_json.short, most=160)


# --- policy.pt2 --------------------------------------------------------------------------------

_MAX_ARCHIVE_BYTES = 512 * 2**20
_MEMBER = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(serialization_id|version)|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/model_constants_config\.json|extra/contract\.json"
)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(__and__|add|all|argmax|chunk|clamp|div|elu|isfinite|linear|mul|relu"
    r"|rms_norm|sigmoid|sub|tanh|where)\.[A-Za-z][A-Za-z_]*|_operator\.getitem"
)
_ARGUMENTS = frozenset(
    ("tensor", "tensors", "int", "ints", "sym_int", "float", "bool", "none", "name", "expr")
)
_DIMENSION = r"L\['\w+'\]\.size\(\)\[\d+\]"
_TREE = r'[\[\]{}:, 0-9]|null|"(type|context|children_spec|null|\[\]|builtins\.(tuple|dict))"'
_NAME = re.compile(r"[\w.]*", re.ASCII)
_TEXTS = {
    "target": _OPERATOR,
    "expr_str": re.compile(r"Symbol\('\w+'(, positive=True)?(, integer=True)?\)"),
    "guards_code": re.compile(rf"{_DIMENSION} (==|>=|<=) ({_DIMENSION}|\d+)"),
    "in_spec": re.compile(f"({_TREE})*"),
    "out_spec": re.compile(f"({_TREE})*"),
    "nn_module_stack": re.compile(r"[\w.,;]*", re.ASCII),
    "torch_fn": re.compile(r"[\w.;]*", re.ASCII),
    "torch_version": re.compile(r"[\w.+]*", re.ASCII),
}
"""What strings look like, by their key; all others are names."""


def refuse_hostile_archive(data: bytes) -> None:
    """Refuse a ``.pt2`` in which torch would unpickle or evaluate something.

    Raises:
        CannotRunError: no archive, or something in it that ``export`` never writes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _MAX_ARCHIVE_BYTES:
                raise CannotRunError("it inflates to more than any policy")
            if len({member.filename for member in members}) < len(members):
                raise CannotRunError("it holds a name twice")
            for member in members:
                _refuse_member(member.filename.partition("/")[2], archive.read(member))
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError),
        *(NotImplementedError, RecursionError),
    ) as error:
        raise CannotRunError(f"it is no intact archive: {short(error)}") from error


def _refuse_member(name: str, content: bytes) -> None:
    if not _MEMBER.fullmatch(name):
        raise CannotRunError(f"it holds {short(name)}, which no exported policy does")
    if name.startswith("data/sample_inputs/") and content:
        raise CannotRunError("it carries pickled sample inputs")
    if name.startswith("data/weights/weight_") and content[:2] == b"PK":
        raise CannotRunError("it carries pickled tensors")
    if name.endswith(".json") and not name.startswith("extra/"):
        _refuse_odd_values(json.loads(content), "")


def _refuse_odd_values(node: Any, key: str) -> None:
    if isinstance(node, str) and not _TEXTS.get(key, _NAME).fullmatch(node):
        raise CannotRunError(
            f"it says {short(node)!r} for {key or 'a name'}, which no exported policy does"
        )
    if isinstance(node, list):
        for item in node:
            _refuse_odd_values(item, key)
    if isinstance(node, dict):
        if node.get("use_pickle"):
            raise CannotRunError("it carries pickled objects")
        for name, item in node.items():
            _refuse_odd_values(name, "")
            if name.startswith("as_") and name.removeprefix("as_") not in _ARGUMENTS:
                raise CannotRunError(f"it says {name!r}, which no exported policy does")
            _refuse_odd_values(item, name)


# --- policy.onnx -------------------------------------------------------------------------------


def refuse_foreign_graph(model: Any) -> None:
    """Refuse an ONNX model of other operators than ``export`` writes, or with other files.

    Raises:
        CannotRunError: names the operator.
    """
    for node in model.graph.node:
        if node.domain or node.op_type not in onnx_file.OPERATORS:
            raise CannotRunError(f"it has the operator {short(node.op_type)}, no exported one does")
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise CannotRunError("it keeps weights in other files, which a bundle never does")
    if model.functions or model.graph.sparse_initializer:
        raise CannotRunError("it has functions or sparse weights, which a bundle never does")


# --- policy.c ----------------------------------------------------------------------------------

_WORD = re.compile(r"[A-Za-z_]\w*")
_C_TEXT = re.compile(
    r'"(?:[^"\\\n]|\\[0-7]{3})*"|/\*.*?\*/|\b\d[\w.]*(?:[eE][+-]\w+)?|(//)', re.DOTALL
)
"""What holds no words: strings, comments, numbers. ``//`` hides the start of a comment."""
_SPLICE = re.compile(r"[^\n -~]|\?\?|\\(?![0-7]{3})")
"""What makes a compiler read other lines than stand there; strings hold octal escapes alone."""
_GENERATED = re.compile(r"(?:SUPPLE_POLICY|supple_policy)_\w+|[xwb]\d+")
_KNOWN_WORDS = frozenset(
    (
        *("static", "const", "float", "char", "int", "void", "extern", "restrict", "return"),
        *("for", "if", "else", "sizeof", "typedef", "struct", "uint32_t", "C"),
        *("memcpy", "memset", "tanhf", "expf", "sqrtf"),
        *("dense", "all_finite", "rms_norm", "sigmoid", "reset", "update", "new"),
        *("w", "b", "x", "y", "row", "rows", "inputs", "k", "i", "sum", "bits", "count", "factor"),
        *("eps", "state", "observation", "action", "command", "raw", "bounded", "scale", "offset"),
        *("best", "fine", "memory", "last_action", "low", "high", "INFINITY"),
    )
)
_DIRECTIVE = re.compile(
    r'#(?:include (?:"policy\.h"|<math\.h>|<stdint\.h>|<string\.h>)'
    r"|ifndef SUPPLE_POLICY_H|ifdef __cplusplus|endif"
    r"|define SUPPLE_POLICY_[A-Z_]+(?: [0-9.e+-]+)?)"
)


def refuse_foreign_code(source: bytes, name: str) -> None:
    """Refuse C that says anything a generated policy never says, so that it cannot call out.

    Raises:
        CannotRunError: names the first such word.
    """
    try:
        text = source.decode("ascii")
    except UnicodeDecodeError as error:
        raise CannotRunError(f"{name} is not plain ASCII, a generated policy is") from error
    # Before anything is taken away: a compiler splices lines before it looks for comments.
    splice = _SPLICE.search(text)
    if splice:
        raise CannotRunError(f"{name} holds {splice[0]!r}, which no generated policy does")
    lines = text.split("\n")
    for line in lines:
        if line.lstrip().startswith("#") and not _DIRECTIVE.fullmatch(line.strip()):
            raise CannotRunError(f"{name} says {short(line)!r}, which no generated policy does")
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    code = _C_TEXT.sub(lambda found: found[1] or " ", code)
    for odd in ("#", "\\", '"', "%:", "??", "'", "//"):
        if odd in code:
            raise CannotRunError(f"{name} holds {odd!r}, which no generated policy does")
    for word in _WORD.findall(code):
        if word not in _KNOWN_WORDS and not _GENERATED.fullmatch(word):
            raise CannotRunError(f"{name} says {word!r}, which no generated policy does")
