"""The three packages are twins: the same files, and in each the same public names and signatures in the same order.

Only syntax trees are compared, so no framework is needed and none is loaded. What a framework makes different stands in
ALLOWED, word for word and with its reason; an entry that no longer describes a difference fails too.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE, OTHERS = "pytorch_impl", ("mxnet_impl", "jittor_impl")
ADAPTERS = ("benchmarks/backends", "parity_tests/backends")

ALLOWED = {
    "mxnet_impl/backbones/_layers.py: not in pytorch_impl": "Gluon's PReLU is slow, its BatchNorm of (N, C) crashes",
    **{
        f"{package}/backbones/_prelu.py: missing": "PyTorch has no other layer to replace; the others' is in _layers.py"
        for package in ("mxnet_impl", "jittor_impl")
    },
    "mxnet_impl/checkpoint.py: named_parameters is not in pytorch_impl": (
        "Gluon keeps gradients, and whether there are any, in a Parameter; in PyTorch and Jittor the tensor knows"
    ),
    "mxnet_impl/optimizer.py: SGD is not in pytorch_impl": "MXNet's own has the learning rate in the momentum buffer",
    "mxnet_impl/running_statistics.py: not in pytorch_impl": "MXNet's BatchNorm keeps the biased variance",
    **{
        f"mxnet_impl/losses/skipping.py: {name}": "NumPy, as MXNet's sums and maxima are slow on the CPU; it writes "
        "the gradients where MXNet holds them"
        for name in (
            "memory is not in pytorch_impl",
            "SkippingPass(), not (DensePass)",
            "SkippingPass.__init__(self, labels: np.ndarray, factors: np.ndarray, rescaling: Rescaling, least_cosine: "
            "float, block_size: int, *, with_gradients: bool=True) -> None, not (self, embeddings: Tensor, "
            "class_weight: Tensor, labels: Tensor, factors: Tensor, rescaling: Rescaling, *, least_cosine: float, "
            "with_gradients: bool=True) -> None",
            "SkippingPass.run(self, embeddings: np.ndarray, class_weight: np.ndarray) -> None, not (self, block_size: "
            "int) -> None",
            "SkippingPass.result is not in pytorch_impl",
            "SkippingPass.gradients is not in pytorch_impl",
        )
    },
    "mxnet_impl/losses/sface.py: SFaceHead.extra_repr is missing": "Gluon has __repr__ only",
    **{
        f"mxnet_impl/losses/sface.py: {name} is missing": "MXNet's products of float32 are full by themselves"
        for name in ("product", "full_precision")
    },
    "jittor_impl/backbones/_layers.py: not in pytorch_impl": "Jittor's BatchNorm keeps the biased variance",
    **{
        f"jittor_impl/runtime.py: {name} is not in pytorch_impl": "Jittor downloads oneDNN unless it finds it"
        for name in ("ONEDNN_HEADERS", "ONEDNN_LIBRARY", "ONEDNN_FOLDER")
    },
    "jittor_impl/benchmarks/backends/loaders.py: missing": "who trains faces picks MXNet's or PyTorch's loader",
    **{
        f"jittor_impl/losses/sface.py: {name} is not in pytorch_impl": "Jittor rounds Python numbers to float32, also "
        "those in its means, and its sums are slow on a GPU"
        for name in ("number", "mean", "nearer_others", "row_sums")
    },
    "jittor_impl/losses/sface.py: product is missing": "Jittor reads its setting of products when one runs, not before",
    **{
        f"jittor_impl/{name}: not in pytorch_impl": "Jittor compiles itself, and each operator that it meets"
        for name in ("cache.py", "compiling.py", "precompiled.py")
    },
    "jittor_impl/__main__.py: COMMANDS is not in pytorch_impl": "Jittor compiles each operator that it meets",
    "jittor_impl/runtime.py: KERNEL_FLAGS is not in pytorch_impl": "Jittor compiles its kernels; its -Ofast hides NaN",
    "jittor_impl/runtime.py: jt is not in pytorch_impl": "a function imports it, once the environment is ready",
    "jittor_impl/runtime.py: resolve_device(name: str) -> str, not (name: str) -> Device": "Jittor has no such class",
    "jittor_impl/runtime.py: describe(device: str) -> dict[str, Any], not (device: Device) -> dict[str, Any]": (
        "Jittor has no such class"
    ),
    **{
        f"{package}/{name} missing": "their engines have no all-gather and no reduce-scatter: prototypes stay whole"
        for package in ("mxnet_impl", "jittor_impl")
        for name in (
            "class_shards.py:",
            "benchmarks/backends/sharded_forms.py:",
            "losses/sface.py: Shard is",
            "losses/sface.py: SFaceHead.shard is",
            "distributed.py: Group.maximum is",
            "distributed.py: Group.share is",
            "distributed.py: Group.joined is",
        )
    },
    **{
        f"{package}/{name} is missing": "class sampling is there to be compared with"
        for package in ("mxnet_impl", "jittor_impl")
        for name in (
            "benchmarks/backends/head_forms.py: PARTIAL_FC_RATE",
            "losses/margin_heads.py: MarginHead.sample_rate",
            "losses/margin_heads.py: sampled",
        )
    },
    **{
        f"{package}/losses/dense.py: Block is missing": "only PyTorch computes a crowded block in Python on the CPU too"
        for package in ("mxnet_impl", "jittor_impl")
    },
    **{
        f"{package}/losses/{name} missing": "they have no product of 8-bit integers, nor sums of listed rows"
        for package in ("mxnet_impl", "jittor_impl")
        for name in ("screening.py:", "compacting.py:", "skipping.py: weighted_sums is")
    },
    **{
        f"{package}/distributed.py: {name}": "PyTorch has an engine for each device, they have one"
        for package in ("mxnet_impl", "jittor_impl")
        for name in (
            "join() -> Ranks, not (device: Device) -> Ranks",
            "Group.__init__(self) -> None, not (self, device: Device) -> None",
        )
    },
    "mxnet_impl/distributed.py: synchronise_batch_norm(backbone: Module, group: Group) -> None, not (backbone: Module, "
    "device: Device) -> None": "its layer asks the parameter server",
    "mxnet_impl/kvstore_server.py: not in pytorch_impl": "its own server unpickles what it is sent",
    "mxnet_impl/distributed.py: Group.average is not in pytorch_impl": "the mean of an array by name",
    "mxnet_impl/distributed.py: Group.sum(self, tensors: Mapping[str, Tensor]) -> None, not (self, tensor: Tensor)"
    " -> Tensor": "a parameter server keeps arrays by name",
    **{
        f"mxnet_impl/{name}": "one process may drive several GPUs: MXNet's engine has a kvstore for that"
        for name in (
            "distributed.py: local_device is missing",
            "distributed.py: local_devices is not in pytorch_impl",
            "distributed.py: Devices is not in pytorch_impl",
            "trainer.py: Trainer.__init__(self, config: RunConfig, num_classes: int, *, devices: Sequence[Device] | "
            "None=None) -> None, not (self, config: RunConfig, num_classes: int) -> None",
        )
    },
    "jittor_impl/distributed.py: BEATS is missing": "a rank that waits in MPI runs no other thread",
    "jittor_impl/distributed.py: end_with is not in pytorch_impl": "a rank that fails would wait for all others in MPI",
    "jittor_impl/distributed.py: local_device(device: str) -> str, not (device: Device) -> Device": (
        "Jittor has no such class"
    ),
    "jittor_impl/distributed.py: synchronise_batch_norm(backbone: Module) -> None, not (backbone: Module, "
    "device: Device) -> None": "one layer serves all devices",
}

# arguments: torch.compile has no twin, and the engines of the others no all-gather of rows
ONLY_PYTORCHS = ("compiled", "screened", "shard", "ranks", "module", "num_classes")

FORWARD = ("forward", "hybrid_forward", "execute")
# A Parameter is a tensor in PyTorch and in Jittor has no class of its own. Names are mapped with their module: the
# backbones have a Block that is no gluon.Block.
ONE_NAME = {
    **dict.fromkeys(("NDArray", "Symbol", "Var", "nn.Parameter", "gluon.Parameter"), "Tensor"),
    **dict.fromkeys(("nn.Module", "gluon.Block", "gluon.HybridBlock"), "Module"),
    **dict.fromkeys(("torch.optim.SGD", "jt.optim.SGD"), "SGD"),
    **dict.fromkeys(("torch.device", "mx.Context"), "Device"),
}


def files(root: Path, package: str) -> dict[str, Path]:
    """A backend's files, its tests apart, and those of its adapters, by names that the twins share."""
    paths = {path.relative_to(root / package).as_posix(): path for path in sorted((root / package).rglob("*.py"))}
    paths = {name: path for name, path in paths.items() if not name.startswith("tests/")}
    backend = package.removesuffix("_impl")
    for room in ADAPTERS:
        adapters = [*(root / room).glob(f"{backend}.py"), *sorted((root / room / backend).glob("*.py"))]
        paths |= {f"{room}/{path.name.replace(backend, 'backend')}": path for path in adapters}
    return paths


def signature(node: ast.FunctionDef) -> str:
    if node.name == "hybrid_forward":  # Gluon hands it mxnet.nd or mxnet.sym, which the others import
        node.args.args = [argument for argument in node.args.args if argument.arg != "F"]
    node.args.kwonlyargs, node.args.kw_defaults = (
        [item for argument, item in zip(node.args.kwonlyargs, items, strict=True) if argument.arg not in ONLY_PYTORCHS]
        for items in (node.args.kwonlyargs, node.args.kw_defaults)
    )
    kinds = [d for d in map(ast.unparse, node.decorator_list) if d in ("property", "staticmethod", "classmethod")]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}" + "".join(f" @{kind}" for kind in kinds)


def described(node: ast.stmt, owner: str) -> list[tuple[str, str]]:
    """The public names that a statement defines, each with what its twins must have in common."""
    found: list[tuple[str, str]] = []
    if isinstance(node, ast.FunctionDef):
        found = [("forward" if owner and node.name in FORWARD else node.name, signature(node))]
    elif isinstance(node, ast.ClassDef):
        found = [(node.name, f"({', '.join(map(ast.unparse, node.bases))})")]
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        # a file's constants hold dtypes, layers and requirements of its framework; a class's fields are its interface
        found = [(name, f": {ast.unparse(node)}" if owner else "") for name in names]
    public = [(name, text) for name, text in found if name == "__init__" or not name.startswith("_")]
    return [(owner + name, one_name(text)) for name, text in public]


def one_name(text: str) -> str:
    return re.sub(r"[\w.]+", lambda word: ONE_NAME.get(word[0], word[0]), text).replace("Tensor | Tensor", "Tensor")


def public_names(file: Path) -> dict[str, str]:
    """Public functions, classes, constants and members of public classes in order, each with its signature."""
    names: dict[str, str] = {}
    for node in ast.parse(file.read_text("utf-8")).body:
        names |= described(node, "")
        if isinstance(node, ast.ClassDef) and node.name in names:
            for member in node.body:
                for name, text in described(member, f"{node.name}."):
                    names.setdefault(name, text)  # a block's forward is what is called, its hybrid_forward comes after
    return names


def compared(twin: dict[str, str], reference: dict[str, str]) -> list[str]:
    def absent(names: dict[str, str], others: dict[str, str]) -> list[str]:  # a class speaks for its members
        return [name for name in names if name not in others and name.partition(".")[0] in {*others, name}]

    found = [f"{name} is missing" for name in absent(reference, twin)]
    found += [f"{name} is not in {REFERENCE}" for name in absent(twin, reference)]
    order, wanted = [name for name in twin if name in reference], [name for name in reference if name in twin]
    moved = [f"{a} stands where {REFERENCE} has {b}" for a, b in zip(order, wanted, strict=True) if a != b]
    found += moved[:1]  # the rest follows from it
    different = [name for name in order if twin[name] != reference[name]]
    return found + [f"{name}{twin[name]}, not {reference[name]}" for name in different]


def differences(root: Path) -> list[str]:
    reference = files(root, REFERENCE)
    found = []
    for package in OTHERS:
        twin = files(root, package)
        found += [f"{package}/{file}: missing" for file in reference if file not in twin]
        found += [f"{package}/{file}: not in {REFERENCE}" for file in twin if file not in reference]
        for file in (file for file in twin if file in reference):
            pair = public_names(twin[file]), public_names(reference[file])
            found += [f"{package}/{file}: {difference}" for difference in compared(*pair)]
    return found


def problems(root: Path, allowed: dict[str, str]) -> list[str]:
    found = differences(root)
    stale = [f"ALLOWED has what is no longer so: {entry}" for entry in allowed if entry not in found]
    return [difference for difference in found if difference not in allowed] + stale


def test_the_packages_are_twins():
    found = problems(ROOT, ALLOWED)
    assert not found, "make them agree, or add what a framework imposes to ALLOWED:\n" + "\n".join(found)


# The test itself, on small packages

PYTORCH = """
from torch import Tensor, nn
FLOOR = 1e-12
KINDS: list[type] = [layer for layer in LAYERS]

class Result(NamedTuple):
    loss: Tensor

class Head(nn.Module):
    def __init__(self, size: int, *, scale: float = 64.0) -> None: ...
    def forward(self, x: Tensor) -> Tensor: ...
    def logits(self, x: Tensor) -> Tensor: ...

def loss(x: Tensor, labels: Tensor, *, scale: float = 64.0) -> Result: ...
def weight(theta: Tensor, center: float = 0.87) -> Tensor: ...
def _check(x: Tensor) -> None: ...
"""
JITTOR = PYTORCH.replace("Tensor", "Var").replace("forward", "execute").replace("torch", "jittor")
MXNET = (
    PYTORCH.replace("layer for layer", "block for block")
    .replace("    def logits", "    def hybrid_forward(self, F, images: Symbol) -> Symbol: ...\n    def logits")
    .replace("forward(self, x: Tensor)", "forward(self, x: NDArray | Symbol)")
    .replace("Tensor", "NDArray")
    .replace("nn.Module", "gluon.HybridBlock")
    .replace("def _check(x", "def _verify(y")
)
LOSS = "def loss(x: Var, labels: Var, *, scale: float = 64.0) -> Result: ...\n"
WEIGHT = "def weight(theta: Var, center: float = 0.87) -> Var: ...\n"


@pytest.fixture
def root(tmp_path):
    for package, text in ((REFERENCE, PYTORCH), ("mxnet_impl", MXNET), ("jittor_impl", JITTOR)):
        (tmp_path / package / "tests").mkdir(parents=True)
        for file in ("head.py", "loss.py"):
            (tmp_path / package / file).write_text(text, "utf-8")
    (tmp_path / REFERENCE / "tests" / "test_head.py").touch()
    return tmp_path


def test_frameworks_own_names_private_names_and_tests_may_differ(root):
    assert problems(root, {}) == []


def test_a_file_that_one_lacks_is_found(root):
    (root / "jittor_impl" / "loss.py").unlink()
    (root / "mxnet_impl" / "more.py").touch()
    assert problems(root, {}) == ["mxnet_impl/more.py: not in pytorch_impl", "jittor_impl/loss.py: missing"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (WEIGHT, "", "weight is missing"),
        ("class Head(", "class _Head(", "Head is missing"),
        ("FLOOR =", "EXTRA = 1\nFLOOR =", "EXTRA is not in pytorch_impl"),
        ("def logits(", "def _logits(", "Head.logits is missing"),
        (LOSS + WEIGHT, WEIGHT + LOSS, "weight stands where pytorch_impl has loss"),
        ("labels: Var", "targets: Var", "loss(x: Tensor, targets: Tensor, *, scale"),
        ("size: int, *,", "size: int,", "Head.__init__(self, size: int, scale"),
        ("center: float = 0.87", "center: float = 0.8", "weight(theta: Tensor, center: float=0.8) -> Tensor, not"),
        ("center: float", "center: int", "weight(theta: Tensor, center: int=0.87) -> Tensor, not"),
        ("    loss: Var", "    loss: float", "Result.loss: loss: float, not"),
        ("Head(nn.Module)", "Head(Result)", "Head(Result), not (Module)"),
        ("    def logits", "    @property\n    def logits", "Head.logits(self, x: Tensor) -> Tensor @property, not"),
    ],
)
def test_a_name_or_signature_that_parts_is_found(root, old, new, expected):
    assert JITTOR.count(old) == 1
    (root / "jittor_impl" / "loss.py").write_text(JITTOR.replace(old, new), "utf-8")
    (found,) = problems(root, {})
    assert found.startswith(f"jittor_impl/loss.py: {expected}")


def test_an_allowed_difference_passes_and_a_stale_entry_fails(root):
    allowed = {"mxnet_impl/more.py: not in pytorch_impl": "reason"}
    (root / "mxnet_impl" / "more.py").touch()
    assert problems(root, allowed) == []
    (root / "mxnet_impl" / "more.py").unlink()
    assert problems(root, allowed) == [f"ALLOWED has what is no longer so: {next(iter(allowed))}"]
