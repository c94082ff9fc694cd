"""Mistakes that people have made in this loss and its training, as edits of a backend's source.

The suite must find each of them: `tests/test_faults.py` edits a copy of the package and runs the suite on it. An edit
whose old text is not there exactly once fails, so the table cannot fall behind the source.
"""

from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """Replace `old` by `new` in `file` of the package; the comparisons of `level` must then fail."""

    name: str
    level: int
    file: str
    old: str
    new: str


def plant(package: Path, fault: Fault) -> None:
    """Edit a copy of a backend's package.

    Raises:
        ValueError: the old text is not there exactly once.
    """
    path = package / fault.file
    source = path.read_text("utf-8")
    if source.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: expected the old text once in {fault.file}, got {source.count(fault.old)}")
    path.write_text(source.replace(fault.old, fault.new), "utf-8")


_BIASED_IN_PYTORCH = """EPS = 1e-5


def _biased(x, mean, variance, weight, bias, training, *options, right=nn.functional.batch_norm):
    before = variance.clone()
    out = right(x, mean, variance, weight, bias, training, *options)
    if training:
        axes = [i for i in range(x.ndim) if i != 1]
        variance.data.copy_(0.9 * before + 0.1 * x.detach().var(axes, unbiased=False))
    return out


nn.functional.batch_norm = _biased
"""

_RATE_INSIDE_IN_PYTORCH = """        for parameter in group["params"]:
            if group["lr"]:
                momentum_buffer(optimizer, parameter).mul_(group["lr"] / learning_rate)
        group["lr"] = learning_rate"""

_RATE_INSIDE_IN_MXNET = """    for buffer in optimizer.buffers.values():
        if optimizer.learning_rate:
            buffer *= optimizer.learning_rate / learning_rate
    optimizer.learning_rate = learning_rate"""

_RATE_INSIDE_IN_JITTOR = """    for buffer in sum([group["values"] for group in optimizer.param_groups], []):
        if optimizer.lr:
            buffer.update(buffer * (optimizer.lr / learning_rate))
    optimizer.lr = learning_rate"""

LOSS, MARGINS, TRAINER = "losses/sface.py", "losses/margin_heads.py", "trainer.py"
DENSE, SKIPPING = "losses/dense.py", "losses/skipping.py"

# Two lines for most faults: where it is; the old and the new text.
# fmt: off
_IN_ALL = (
    Fault("prototypes not normalised", 1, LOSS,
          "unit_prototypes, _ = normalise(class_weight)", "unit_prototypes = class_weight"),
    Fault("no floor under the norm of a zero embedding", 3, MARGINS,
          "normalise(embeddings)[1] *", "(embeddings * embeddings).sum(1, keepdims=True).sqrt() *"),
    Fault("pixel scale ten times off", 5, TRAINER, "- 127.5) / 128", "- 127.5) / 12.8"),
    Fault("weight decay on BatchNorm", 5, "optimizer.py", "isinstance(module, NORMALISATIONS) or ", ""),
)
_IN_MXNET_AND_JITTOR = (
    Fault("target in the inter sum, plain form", 1, LOSS,
          "rescaling.push(theta) * (1 - is_target)", "rescaling.push(theta)"),
    Fault("gradient without the tangent projection, streamed form", 3, DENSE,
          "return (grad_unit - radial * unit) / norms", "return grad_unit / norms"),
    Fault("margin not differentiated", 3, MARGINS, "1 - target * target,", "1 - (target * target).detach(),"),
)
_BGR_BEFORE_EMBEDDING = Fault(
    "BGR for RGB", 5, TRAINER, "self._embeddings(part_images)", "self._embeddings(part_images[:, ::-1].copy())"
)
FAULTS: dict[str, tuple[Fault, ...]] = {
    "pytorch": (
        *_IN_ALL,
        Fault("r not detached", 3, LOSS, "with torch.no_grad():", "with torch.enable_grad():"),
        Fault("a and b swapped", 1, LOSS, "_like(theta, self.intra_center)", "_like(theta, self.inter_center)"),
        Fault("slope 64", 1, LOSS,
              "    rescaling = Rescaling(scale, intra_slope,", "    rescaling = Rescaling(scale, 64,"),
        Fault("no scale", 1, LOSS, "    rescaling = Rescaling(scale, intra_slope,",
              "    rescaling = Rescaling(1.0, intra_slope,"),
        Fault("cosine for angle, streamed form", 1, DENSE,
              "rescaling.pull(torch.acos(self.target_cosines))", "rescaling.pull(self.target_cosines)"),
        Fault("slope 64, r itself", 2, LOSS, "torch.sigmoid(self.intra_slope *", "torch.sigmoid(64 *"),
        Fault("degrees for radians", 1, LOSS,
              "torch.acos(cosines)", "torch.rad2deg(torch.acos(cosines))"),
        Fault("scale inside arccos", 1, LOSS,
              "torch.acos(cosines)", "torch.acos((64 * cosines).clamp(-1, 1))"),
        Fault("sum for mean", 1, LOSS, "1 / len(labels) if reduction", "1.0 if reduction"),
        Fault("no sample weight", 1, LOSS, "factors *= sample_weight.detach()", "pass"),
        Fault("no sample weight in the gradient, streamed form", 3, DENSE,
              "self.unit_embeddings * factors[:, None]", "self.unit_embeddings / len(labels)"),
        Fault("target in the inter sum, plain form", 1, LOSS,
              ".masked_fill(is_target, 0)\n\n    intra_loss", "\n\n    intra_loss"),
        Fault("target in the inter sum, gathered", 1, DENSE, "        block.fill(cosines, -1)\n", ""),
        Fault("sign of the pull, dense", 3, DENSE, "block.put(g, -self.r_intra)", "block.put(g, self.r_intra)"),
        Fault("sign of the pull, gathered", 3, SKIPPING, "-self.r_intra[own]", "self.r_intra[own]"),
        Fault("norms of prototypes left out, gathered", 3, SKIPPING,
              "g / norms.index_select(0, columns)", "1 * g"),
        Fault("no tangent projection, gathered", 3, SKIPPING, "/ norms * (norms > NORM_FLOOR)", "* 0"),
        Fault("norms of prototypes left out, dense", 3, DENSE, "g.div_(block.norms)", "g"),
        Fault("no tangent projection, dense", 3, DENSE, "FLOOR))[:, None], value=-1", "FLOOR))[:, None], value=0"),
        Fault("no tangent projection, embeddings", 3, DENSE, "(grad_unit - radial * unit) /", "grad_unit /"),
        Fault("margin not differentiated", 3, MARGINS, "target**2).clamp_min", "target.detach() ** 2).clamp_min"),
        Fault("biased for unbiased variance", 5, "backbones/iresnet.py", "EPS = 1e-5\n", _BIASED_IN_PYTORCH),
        Fault("learning rate inside the momentum", 6, "optimizer.py",
              '        group["lr"] = learning_rate', _RATE_INSIDE_IN_PYTORCH),
        Fault("labels off by one", 5, TRAINER,
              "self._to_device(part_labels)", "self._to_device((part_labels + 1) % self._num_classes)"),
        _BGR_BEFORE_EMBEDDING,
        Fault("momentum not saved", 7, "checkpoint.py",
              "tensor.copy_(torch.from_numpy(", "tensor.copy_(1.001 * torch.from_numpy("),
    ),
    "mxnet": (
        *_IN_ALL, *_IN_MXNET_AND_JITTOR,
        Fault("r not detached", 3, LOSS, "with autograd.pause():", "with autograd.record():"),
        Fault("a and b swapped", 1, LOSS,
              "inter_slope, intra_center, inter_center)\n    check",
              "inter_slope, inter_center, intra_center)\n    check"),
        Fault("slope 64, plain form", 1, LOSS,
              "rescaling.of_classes(labels).pull(", "dataclasses.replace(rescaling, intra_slope=64).pull("),
        Fault("slope 64, streamed form", 1, SKIPPING,
              "_at_cosines(self.rescaling.pull,", "_at_cosines(Rescaling(64, 64, 80, 0.87, 1.2).pull,"),
        Fault("slope 64, r itself", 2, LOSS, "nd.sigmoid(self.intra_slope *", "nd.sigmoid(64 *"),
        Fault("degrees for radians", 1, LOSS, "nd.arccos(cosines)", "nd.degrees(nd.arccos(cosines))"),
        Fault("scale inside arccos", 1, LOSS, "nd.arccos(cosines)", "nd.arccos((64 * cosines).clip(-1, 1))"),
        Fault("sum for mean", 1, LOSS, "factors = factors / len(labels)", "pass"),
        Fault("no sample weight in the push, streamed form", 1, SKIPPING,
              "reduced(self.inter_losses, self.factors,", "reduced(self.inter_losses, 1 / len(self.labels),"),
        Fault("no sample weight in the gradient, streamed form", 3, SKIPPING,
              "r_inter * self.factors[:, None]", "r_inter / len(self.labels)"),
        Fault("target in the inter sum, streamed form", 1, SKIPPING, "        r_inter[targets] = 0\n", ""),
        Fault("biased for unbiased variance", 5, "running_statistics.py", "* (n / (n - 1))", "* 1"),
        Fault("learning rate inside the momentum", 6, "optimizer.py",
              "    optimizer.learning_rate = learning_rate", _RATE_INSIDE_IN_MXNET),
        Fault("labels off by one", 5, TRAINER,
              "nd.array(part_labels, self.device", "nd.array((part_labels + 1) % self._num_classes, self.device"),
        Fault("BGR for RGB", 5, TRAINER, "self._forward(part_images)", "self._forward(part_images[:, ::-1].copy())"),
        Fault("momentum not saved", 7, "checkpoint.py", "tensor[:] = nd.array(", "tensor[:] = 1.001 * nd.array("),
    ),
    "jittor": (
        *_IN_ALL, *_IN_MXNET_AND_JITTOR, _BGR_BEFORE_EMBEDDING,
        Fault("r not detached", 3, LOSS, "jt.arccos(cosines.detach())", "jt.arccos(cosines)"),
        Fault("a and b swapped", 1, LOSS,
              "inter_slope, intra_center, inter_center)\n    check_options(form, reduction",
              "inter_slope, inter_center, intra_center)\n    check_options(form, reduction"),
        Fault("slope 64, plain form", 1, LOSS,
              "rescaling.of_classes", "dataclasses.replace(rescaling, intra_slope=64.0).of_classes"),
        Fault("slope 64, streamed form", 1, DENSE,
              "rescaling.pull(jt.arccos", "Rescaling(64.0, 64.0, 80.0, 0.87, 1.2).pull(jt.arccos"),
        Fault("slope 64, r itself", 2, LOSS, "_as_data(self.intra_slope,", "_as_data(64,"),
        Fault("degrees for radians", 1, LOSS,
              "jt.arccos(cosines.detach())", "(jt.arccos(cosines.detach()) * number(57.29577951308232, cosines))"),
        Fault("scale inside arccos", 1, LOSS,
              "jt.arccos(cosines.detach())", "jt.arccos((number(64, cosines) * cosines.detach()).clamp(-1, 1))"),
        Fault("sum for mean", 1, LOSS, 'number(1 / labels.shape[0] if reduction == "mean" else 1.0,', "number(1.0,"),
        Fault("target in the inter sum, streamed form", 1, "losses/skipping.cc",
              "if (begin <= j && j < end) cosines[j * n + i] = TARGET;", ""),
        Fault("biased for unbiased variance", 5, "backbones/_layers.py",
              "(mean, var * _number(count / (count - 1), x)", "(mean, var * _number(1, x)"),
        Fault("learning rate inside the momentum", 6, "optimizer.py",
              "    optimizer.lr = learning_rate", _RATE_INSIDE_IN_JITTOR),
        Fault("labels off by one", 5, TRAINER,
              "jt.array(part_labels,", "jt.array((part_labels + 1) % self._num_classes,"),
        Fault("momentum not saved", 7, "checkpoint.py",
              "value = jt.array(arrays[name],", "value = jt.array(1.001 * arrays[name],"),
    ),
}
# fmt: on
