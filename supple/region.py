"""Update steps as regions: functions of tensors that run eagerly, compiled or as a CUDA graph.

A region reads and changes tensors it closes over (parameters, moments, running statistics) in
place, takes tensors of fixed shapes, draws no random numbers and never reads a value back. So the
whole step, gradients and optimiser included, is traced once into a single graph and compiled.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from supple.distributed import is_together, lowest
from supple.errors import InputError, first_line

T = TypeVar("T")
Precision = Literal["float32", "tf32", "bfloat16"]

COMPILE_FROM = 10_000
"""Gradient steps from which compiling, about a minute, pays by itself."""
GAIN = 1.25
"""Times as fast as float32 that bfloat16 must be on a CPU: rounding is not given away for less.
Some multiply it at half the speed (a Xeon without its matrix unit: 84 against 160 GFLOP/s)."""
ROUNDING: dict[Precision, float] = {"float32": 0.1, "tf32": 0.1, "bfloat16": 0.3}
"""How far a compiled step may be from the eager one (``_apart``). First steps of most critics of
``laptop`` are up to 6e-5 apart in float32, and 0.12 in bfloat16, which rounds small gradients away.
A row that rounding carries over the kink of a ReLU has another slope there, and Adam's first step
is a gradient's sign: a flow critic's one to three such rows of 128 are 0.02 to 0.05 of the actor
(Pendulum-v1)."""
OF_METRICS = 0.5
"""Of what steps return: some metrics are differences that are zero but for rounding."""
NOTHING = 1e-8
"""Root mean square of a change that is taken for none."""
TRIES = 3
"""Inputs that a compiled step is judged by until it is right on one: wrong code is wrong on all,
while kinks are met by chance."""
JITTER = 1e-3
"""Largest relative distance of the second and third from the true ones."""


@dataclass(kw_only=True, slots=True)
class Compute:
    """How update steps run; the paths differ by rounding only."""

    precision: Precision = "float32"
    """Of the matrix products; statistics, projection, losses and optimiser stay float32."""
    compile: bool = False
    cuda_graphs: bool = False

    def __str__(self) -> str:
        mode = "compiled" if self.compile else "eager"
        return f"{mode} {self.precision}" + (", CUDA graphs" if self.cuda_graphs else "")

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Where matrix products take the chosen precision."""
        if self.precision != "bfloat16":
            return contextlib.nullcontext()
        # Weights change at every step: a cache would only keep stale copies alive.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@dataclass(kw_only=True, slots=True)
class ComputeSettings:
    """How update steps run; auto chooses for the machine and says so."""

    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Of the matrix products; the rest is float32. auto takes bfloat16 where the device multiplies
    it faster; of a CPU that is timed."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update step; auto does so for runs long enough to repay a minute."""
    cuda_graphs: bool = False
    """Replay the update step as a captured CUDA graph."""

    def resolve(self, device: torch.device, *, gradient_steps: float) -> Compute:
        """The choice for one machine and run.

        Raises:
            InputError: something that the device cannot do was asked for.
        """
        if device.type != "cuda":
            for flag, asked in (
                ("--compute.precision tf32", self.precision == "tf32"),
                ("--compute.cuda-graphs", self.cuda_graphs),
            ):
                if asked:
                    raise InputError(f"{flag} needs a CUDA device, got {device}: drop the flag")
        precision = self.precision
        if precision == "auto":
            precision = "bfloat16" if gains_by_bfloat16(device) else "float32"
        if self.compile == "auto":
            compile_it = gradient_steps >= COMPILE_FROM and has_compiler(device)
        else:
            compile_it = self.compile == "on"
        return Compute(precision=precision, compile=compile_it, cuda_graphs=self.cuda_graphs)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the faster one here: on every such GPU, on CPUs by a measurement.

    Of several processes all must gain.
    """
    if device.type == "cuda":
        return has_bfloat16(device)
    return lowest(int(has_bfloat16(device) and _speedup(torch.get_num_threads()) >= GAIN)) == 1


@functools.cache
def _speedup(threads: int) -> float:
    """How many times as fast a product of bfloat16 is as one of float32, on this CPU."""
    best: dict[torch.dtype, float] = {}
    matrices = [torch.ones(512, 512, dtype=kind) for kind in (torch.float32, torch.bfloat16)]
    for _ in range(8):  # in turn, the quickest counts: others want the processor, too
        for matrix in matrices:
            begin = time.perf_counter()
            matrix @ matrix
            taken = time.perf_counter() - begin
            best[matrix.dtype] = min(taken, best.get(matrix.dtype, taken))
    return best[torch.float32] / best[torch.bfloat16]


def precision_of(mode: str) -> Precision | None:
    """The precision that a ``Compute`` had, by its text."""
    return next((each for each in get_args(Precision) if each in mode), None)


def has_compiler(device: torch.device) -> bool:
    """Whether what ``torch.compile`` needs for the device is installed."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", default)) is not None


@contextlib.contextmanager
def float32_products(precision: str, switch: Any = torch.backends.cuda.matmul) -> Iterator[None]:
    """A block in which float32 matrices are multiplied as one of torch's ``fp32_precision``.

    Args:
        precision: ``ieee``, ``tf32`` or ``bf16``.
        switch: whose; it is the whole process's.
    """
    before, switch.fp32_precision = switch.fp32_precision, precision
    try:
        yield
    finally:
        switch.fp32_precision = before


Change = tuple[Tensor, Tensor]
"""What a tensor is, and what it was before."""
Outcome = tuple[list[Change], list[Change]]


class Region(Generic[T]):
    """One function of tensors, prepared at its first call.

    Args:
        function: takes tensors, returns tensors or a dict of them; always the same shapes.
        state: every tensor that ``function`` changes in place.
        compute: eager or compiled, with CUDA graphs or without. If compiling or capturing fails,
            it is switched off there, with one warning that names the cause.
    """

    def __init__(
        self, function: Callable[..., T], *, state: Callable[[], Sequence[Tensor]], compute: Compute
    ) -> None:
        self._function = function
        self._state = state
        self._compute = compute
        self._run: Callable[..., T] | None = None

    def __call__(self, *inputs: Tensor) -> T:
        """Run the step, or put it off to the end of the ``Joined`` block around it."""
        if _open and _open[-1].compute is self._compute:
            return cast(T, _open[-1].put_off(self, inputs))
        if self._run is None:
            with TRACING:
                self._run = self._prepare(inputs)
        return self._run(*inputs)

    def _prepare(self, inputs: tuple[Tensor, ...]) -> Callable[..., T]:
        run = self._function
        if self._all(self._compute.compile):
            run = self._compiled(inputs)
        if self._compute.cuda_graphs:
            run = self._captured(run, inputs)
        return run

    def _compiled(self, inputs: tuple[Tensor, ...]) -> Callable[..., T]:
        # Tracing runs the function too; each run begins from the same state (``_untouched_state``).
        reason, compiled = "in another process", None
        try:
            with self._untouched_state():
                compiled = compile_graph(self._function, inputs)
        except Exception as error:  # whatever a compiler may raise, training goes on
            reason = first_line(error)
        if self._all(compiled is not None) and compiled is not None:
            for close in _close_to(inputs):
                try:
                    found = self._outcome(compiled, close)
                except Exception as error:
                    if is_together():  # the others wait within the step: they see this process end
                        raise
                    reason = first_line(error)
                    break
                wrong = self._disagreement(found, close)
                if self._all(not wrong):
                    return compiled
                reason = wrong or reason
        self._compute.compile = False
        warnings.warn(f"compilation failed, going on in eager: {reason}", stacklevel=2)
        return self._function

    @staticmethod
    def _all(holds: bool) -> bool:
        """Whether it holds in all processes: those that sum within a step run it equally often."""
        return lowest(int(holds)) == 1 if is_together() else holds

    def _captured(self, run: Callable[..., T], inputs: tuple[Tensor, ...]) -> Callable[..., T]:
        static = [value.clone() for value in inputs]
        try:
            captured = capture(lambda: run(*static), around=self._untouched_state)
        except Exception as error:  # training goes on without, as where compiling fails
            self._compute.cuda_graphs = False
            reason = first_line(error)
            warnings.warn(f"capturing failed, going on without CUDA graphs: {reason}", stacklevel=2)
            return run

        def replay(*values: Tensor) -> T:
            torch._foreach_copy_(static, values)
            captured.replay()
            return captured.outputs

        return replay

    def _disagreement(self, found: Outcome, inputs: tuple[Tensor, ...]) -> str:
        """What is wrong with a compiled step, by the eager one; empty where rounding explains it.

        What a step returns is judged by itself: it may be small beside the state that it changes.
        """
        try:
            expected = self._outcome(self._function, inputs)
        except torch.OutOfMemoryError:  # it takes more than the compiled one, which may just fit
            if is_together():
                raise
            return ""
        most = ROUNDING[self._compute.precision]
        for pair, limit in zip(zip(found, expected, strict=True), (OF_METRICS, most), strict=True):
            apart = _apart(*pair)
            if apart > limit:
                return (
                    f"{apart:.1%} of what the compiled step gives is not what the eager one does,"
                    f" rounding explains at most {limit:.0%}"
                )
        return ""

    def _outcome(self, run: Callable[..., T], inputs: tuple[Tensor, ...]) -> Outcome:
        """Of one run that is undone: what it returns, and all state, each with what was before."""
        with self._untouched_state() as before:
            given = [value for value in pytree.tree_leaves(run(*inputs)) if torch.is_tensor(value)]
            returned = [(value.detach().clone(), torch.zeros_like(value)) for value in given]
            after = [value.detach().clone() for value in self._state()]
        return returned, list(zip(after, before, strict=True))

    @contextlib.contextmanager
    def _untouched_state(self) -> Iterator[list[Tensor]]:
        """Undo one run of the function; gives the state before it.

        A ring is too large to copy. Its state is what says where rows go: writing them again then
        changes nothing, but a second run within one block would write the rows after them.
        """
        state = list(self._state())
        before = [value.detach().clone() for value in state]
        try:
            yield before
        finally:
            with torch.no_grad():
                for value, saved in zip(state, before, strict=True):
                    value.copy_(saved)


def _close_to(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs, then some with each floating-point number a little nearer to zero."""
    yield inputs
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRIES - 1):
        yield tuple(
            value * (1 - JITTER * torch.rand(value.shape, generator=generator)).to(value)
            if value.is_floating_point()
            else value
            for value in inputs
        )


@torch.no_grad()
def _apart(found: Sequence[Change], expected: Sequence[Change]) -> float:
    """How far two runs are apart: 0 the same, 1 all that the second gives or changes.

    Of whole numbers the share that differs, of others the distance relative to the change. Each
    tensor counts by its numbers; those that neither run changes do not, nor do changes within
    rounding: gradients that are zero but for it (of a bias before a normalisation) always differ.
    """
    apart = total = 0.0
    for (value, _), (same, before) in zip(found, expected, strict=True):
        if not same.is_floating_point():
            differ, weight = value != same, float((same != before).any() or (value != before).any())
            share = float(differ.double().mean()) if differ.numel() else 0.0
        elif not torch.equal(value.isfinite(), same.isfinite()):
            return 1.0
        else:
            wide, true, start = (x.double().nan_to_num(0.0) for x in (value, same, before))
            eps = torch.finfo(torch.float32).eps
            rounding = NOTHING * true.numel() ** 0.5 + 8 * eps * float(true.norm())
            moved = float((true - start).norm())
            weight = float(max(moved, float((wide - start).norm())) > rounding)
            share = min(float((wide - true).norm()) / (moved + rounding), 1.0) if weight else 0.0
        apart += weight * share * same.numel()
        total += weight * same.numel()
    return apart / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Captured(Generic[T]):
    """A CUDA graph. It reads and writes memory by address: whose it was must live as long."""

    graph: torch.cuda.CUDAGraph
    run: Callable[[], T]
    """What was captured, with the tensors it closes over."""
    outputs: T
    """Where they lie after ``replay``."""

    def replay(self) -> None:
        """Launch it all again."""
        self.graph.replay()


def capture(
    run: Callable[[], T],
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Captured[T]:
    """A CUDA graph of everything a function launches.

    Args:
        run: called a few times first, since what is prepared then cannot be captured.
        around: a block around each of those calls.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with _own_workspace(), torch.cuda.stream(stream):
        for _ in range(3):
            with around():
                run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The simulator may be using the GPU from its own thread (--overlap).
    with _own_workspace(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = run()
    return Captured(graph, run, outputs)


@contextlib.contextmanager
def _own_workspace() -> Iterator[None]:
    """Graphs captured in this block keep what cuBLAS works in for themselves, in their own memory.

    Else those of one stream share the first one's, and torch 2.13 frees it with whichever
    goes first (pytorch/pytorch#193402). As torch/_inductor/cudagraph_trees.py does.
    """
    clear: Callable[[], None] = torch._C._cuda_clearCublasWorkspaces
    clear()
    try:
        yield
    finally:
        clear()


@contextlib.contextmanager
def eagerly(owner: object) -> Iterator[None]:
    """A block in which the regions among an object's attributes run as they are written."""
    regions = [value for value in vars(owner).values() if isinstance(value, Region)]
    before = [region._run for region in regions]
    for region in regions:
        region._run = region._function
    try:
        yield
    finally:
        for region, run in zip(regions, before, strict=True):
            region._run = run


class Joined:
    """A block at whose end the regions called within it run, in their order, as one region.

    Small regions cost more to call than to run. Only for those that return nothing, with the same
    regions in every block. If the block raises, none of them runs. Regions that run eagerly, or
    otherwise than ``compute`` says, are not put off.

    Args:
        compute: the object the regions were given.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self._calls: list[tuple[Region[Any], tuple[Tensor, ...]]] = []
        self._joint: dict[tuple[Region[Any], ...], Region[dict[str, Tensor]]] = {}

    def __enter__(self) -> None:
        if self.compute.compile or self.compute.cuda_graphs:
            _open.append(self)

    def put_off(self, region: Region[Any], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Run a region at the end of the block."""
        self._calls.append((region, inputs))
        return {}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self in _open:
            _open.remove(self)
        calls, self._calls = self._calls, []
        if kind is not None or not calls:
            return
        regions, inputs = zip(*calls, strict=True)
        if regions not in self._joint:
            self._joint[regions] = self._join(regions, [len(values) for values in inputs])
        self._joint[regions](*chain.from_iterable(inputs))

    def _join(
        self, regions: tuple[Region[Any], ...], counts: list[int]
    ) -> Region[dict[str, Tensor]]:
        def run(*inputs: Tensor) -> dict[str, Tensor]:
            left = iter(inputs)
            for region, count in zip(regions, counts, strict=True):
                region._function(*islice(left, count))
            return {}

        def state() -> list[Tensor]:
            return [value for region in regions for value in region._state()]

        return Region(run, state=state, compute=self.compute)


TRACING = threading.Lock()
"""Held while a region is traced: torch marks the whole process then, and a simulator's own
compiled functions refuse to run on another thread meanwhile."""

TIMED = (
    "max_autotune",
    "max_autotune_pointwise",
    "coordinate_descent_tuning",
    "triton.autotune_pointwise",
)
"""Options of torch's compiler by which it times kernels and keeps the fastest."""

_open: list[Joined] = []
"""Blocks being run, the innermost last."""


def compile_graph(function: Callable[..., T], inputs: tuple[Tensor, ...]) -> Callable[..., T]:
    """Trace a function, gradients included, and compile the graph for these shapes.

    Tensors that the function closes over become inputs of the graph, changed in place. No guard
    watches them: that they stay the same tensors is the caller's promise.
    """
    structure: list[pytree.TreeSpec] = []

    def flat(*values: Tensor) -> tuple[Any, ...]:
        outputs, found = pytree.tree_flatten(function(*values))
        structure[:] = [found]
        return tuple(outputs)

    graph = make_fx(flat)(*inputs)
    held = _lift_attributes(graph)
    with torch.no_grad(), warnings.catch_warnings():
        # --compute.precision says what multiplies float32.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        # What is held never changes, and ``run`` looks at the rest: one check, and a readable one.
        # Tuning while compiling is for artifacts that travel; GPU kernels would wait for it.
        # Whether the compiler takes the processor's vector instructions is seen when it is used:
        # torch would try one set after another, for eight seconds.
        patches = {
            "size_asserts": False,
            "triton.autotune_at_compile_time": False,
            "cpp.vec_isa_ok": True,
        }
        on_gpu = any(value.is_cuda for value in (*held, *inputs))
        if on_gpu:
            # Else kernels and paddings are chosen by timing them, and another choice adds or rounds
            # in another order: a run that resumes with an empty cache would part from itself.
            patches |= dict.fromkeys(TIMED, False) | {"deterministic": True}
            if torch.__version__ < "2.13":
                # Reordering loops asserts on steps of several tensors at once, such as Adam's
                # (torch/_inductor/scheduler.py@v2.11.0, reorder_loops_by_dep_pair; 2.13 returns).
                patches["loop_ordering_after_fusion"] = False
        elif torch.__version__ >= "2.13":  # not tried before
            # A step's kernels as one program, with the calls between them: compilers take most of
            # their time to begin one, and Python is left out of the step.
            patches["cpp_wrapper"] = True
        options = {"config_patches": patches}
        with _parts_kept_apart() if on_gpu else contextlib.nullcontext():
            artifact = torch._inductor.standalone_compile(
                graph,
                [*held, *inputs],
                # Sizes that might change would compile for twice as long, to the same numbers.
                dynamic_shapes="from_example_inputs",
                options=options,
            )

    expected = _layouts(inputs)

    @torch.no_grad()
    def run(*values: Tensor) -> T:
        if _layouts(values) != expected:
            values = _fit(values, expected)
        found: T = pytree.tree_unflatten(artifact(*held, *values), structure[0])
        return found

    return run


@contextlib.contextmanager
def _parts_kept_apart() -> Iterator[None]:
    """A block in which no part of a kernel reads what another part of it writes.

    A step over several tensors (``torch._foreach_*``) becomes one kernel whose parts run at once.
    Into one of them torch puts what others read too, the norm of all gradients say, and they may be
    there first (torch/_inductor/scheduler.py@v2.11.0 and v2.13.0, can_fuse).
    """
    from torch._inductor.scheduler import BaseSchedulerNode, ForeachKernelSchedulerNode

    original = vars(ForeachKernelSchedulerNode)["can_fuse"]
    fuses = ForeachKernelSchedulerNode.can_fuse

    def can_fuse(producer: BaseSchedulerNode, consumer: BaseSchedulerNode) -> bool:
        first, then = (
            node.snodes if isinstance(node, ForeachKernelSchedulerNode) else [node]
            for node in (producer, consumer)
        )
        made = [{buffer.get_name() for buffer in part.get_outputs()} for part in first]
        read = [{read.name for read in part.read_writes.reads} for part in then]
        met = [(i, j) for i, names in enumerate(made) for j, own in enumerate(read) if names & own]
        both = producer.is_foreach() and consumer.is_foreach()
        apart = all(i == j for i, j in met) if both else len(met) <= 1
        return apart and fuses(producer, consumer)

    ForeachKernelSchedulerNode.can_fuse = staticmethod(can_fuse)  # type: ignore
    try:
        yield
    finally:
        ForeachKernelSchedulerNode.can_fuse = original  # type: ignore[method-assign]


def _layouts(values: Sequence[Tensor]) -> list[tuple[torch.Size, tuple[int, ...], torch.dtype]]:
    return [(value.shape, value.stride(), value.dtype) for value in values]


def _fit(
    values: Sequence[Tensor], expected: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
) -> tuple[Tensor, ...]:
    """The same values, laid out in memory as expected.

    Raises:
        InputError: a shape or dtype is another one.
    """
    fitting = []
    for number, (value, (shape, stride, dtype)) in enumerate(zip(values, expected, strict=True)):
        if value.shape != shape or value.dtype != dtype:
            raise InputError(
                f"input {number} of a compiled step: expected {dtype} {tuple(shape)}, got"
                f" {value.dtype} {tuple(value.shape)}; it takes the shapes of its first call:"
                " keep them, or set --compute.compile off"
            )
        if value.stride() != stride:
            laid_out = torch.empty_strided(shape, stride, dtype=dtype, device=value.device)
            value = laid_out.copy_(value)
        fitting.append(value)
    return tuple(fitting)


def _lift_attributes(graph: GraphModule) -> list[Tensor]:
    """Turn tensors that a graph holds into its first inputs, in this order."""
    held: dict[str, tuple[Tensor, Node]] = {}
    start = next(iter(graph.graph.nodes))
    for node in graph.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name not in held:
            with graph.graph.inserting_before(start):
                value: Tensor = getattr(graph, name).detach()
                held[name] = value, graph.graph.placeholder(f"held_{len(held)}")
            held[name][1].meta["val"] = value  # as tracing notes of its own inputs
        node.replace_all_uses_with(held[name][1])
        graph.graph.erase_node(node)
    graph.recompile()
    return [value for value, _ in held.values()]
