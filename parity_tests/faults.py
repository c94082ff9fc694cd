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

LOSS, STREAMED, TRAINER = "sface_loss.py", "streamed.py", "trainer.py"

FAULTS: dict[str, tuple[Fault, ...]] = {
    "pytorch": (
        Fault("r not detached", 3, LOSS, "torch.acos(cosines.detach())", "torch.acos(cosines)"),
        Fault(
            "a and b swapped",
            1,
            LOSS,
            "slope=intra_slope, center=intra_center)\n",
            "slope=intra_slope, center=inter_center)\n",
        ),
        Fault(
            "slope 64", 1, LOSS, "(intra_weight, scale=scale, slope=intra_slope", "(intra_weight, scale=scale, slope=64"
        ),
        Fault("cosine for angle, streamed form", 1, STREAMED, "r_intra(torch.acos(self.t", "r_intra((self.t"),
        Fault("slope 64, r itself", 2, LOSS, "torch.sigmoid(slope *", "torch.sigmoid(64 *"),
        Fault(
            "degrees for radians",
            1,
            LOSS,
            "torch.acos(cosines.detach())",
            "torch.rad2deg(torch.acos(cosines.detach()))",
        ),
        Fault(
            "scale inside arccos",
            1,
            LOSS,
            "torch.acos(cosines.detach())",
            "torch.acos((64 * cosines.detach()).clamp(-1, 1))",
        ),
        Fault(
            "sum for mean",
            1,
            LOSS,
            "inter_loss = (push * cosines).sum(1).mean()",
            "inter_loss = (push * cosines).sum()",
        ),
        Fault(
            "prototypes not normalised",
            1,
            LOSS,
            "unit_prototypes = F.normalize(class_weight, eps=NORM_FLOOR)",
            "unit_prototypes = class_weight",
        ),
        Fault(
            "target in the inter sum, plain form",
            1,
            LOSS,
            ".masked_fill(is_target, 0)\n\n    intra_loss",
            "\n\n    intra_loss",
        ),
        Fault("target in the inter sum, gathered", 1, STREAMED, ".masked_fill_(is_own, 0)\n", "\n"),
        Fault(
            "sign of the pull, dense",
            3,
            STREAMED,
            "_put(g, own, is_own, -self.r_intra",
            "_put(g, own, is_own, self.r_intra",
        ),
        Fault("prototypes not normalised, gathered", 3, STREAMED, "g / self.norms[classes]", "g"),
        Fault("no tangent projection, gathered", 3, STREAMED, "radial[:, None], value=-1", "radial[:, None], value=0"),
        Fault("prototypes not normalised, dense", 3, STREAMED, "g.div_(norms * len", "g.div_(len"),
        Fault("no tangent projection, dense", 3, STREAMED, "FLOOR))[:, None], value=-1", "FLOOR))[:, None], value=0"),
        Fault("no tangent projection, embeddings", 3, STREAMED, "(grad_unit - radial * unit) /", "grad_unit /"),
        Fault(
            "margin not differentiated",
            3,
            "margin_losses.py",
            "target**2).clamp_min",
            "target.detach() ** 2).clamp_min",
        ),
        Fault("pixel scale ten times off", 5, TRAINER, "- 127.5) / 128", "- 127.5) / 12.8"),
        Fault("biased for unbiased variance", 5, "backbones/iresnet.py", "EPS = 1e-5\n", _BIASED_IN_PYTORCH),
        Fault(
            "learning rate inside the momentum",
            6,
            "optimizer.py",
            '        group["lr"] = learning_rate',
            _RATE_INSIDE_IN_PYTORCH,
        ),
        Fault(
            "labels off by one",
            5,
            TRAINER,
            "self._to_device(part_labels)",
            "self._to_device((part_labels + 1) % self._num_classes)",
        ),
        Fault("BGR for RGB", 5, TRAINER, "self._forward(part_images,", "self._forward(part_images[:, ::-1].copy(),"),
        Fault("weight decay on BatchNorm", 5, "optimizer.py", "isinstance(module, NORMALISATIONS) or ", ""),
        Fault(
            "momentum not saved",
            7,
            "checkpoint.py",
            "tensor.copy_(torch.from_numpy(",
            "tensor.copy_(1.001 * torch.from_numpy(",
        ),
    ),
    "mxnet": (
        Fault("r not detached", 3, LOSS, "nd.arccos(cosines.detach())", "nd.arccos(cosines)"),
        Fault(
            "a and b swapped",
            1,
            LOSS,
            "inter_slope, intra_center, inter_center)\n    if form",
            "inter_slope, inter_center, intra_center)\n    if form",
        ),
        Fault(
            "slope 64, plain form",
            1,
            LOSS,
            "intra_weight(nd.pick(theta, labels), scale, intra_slope,",
            "intra_weight(nd.pick(theta, labels), scale, 64,",
        ),
        Fault(
            "slope 64, streamed form",
            1,
            LOSS,
            "partial(intra_weight, scale=scale, slope=intra_slope,",
            "partial(intra_weight, scale=scale, slope=64,",
        ),
        Fault("slope 64, r itself", 2, LOSS, "nd.sigmoid(slope *", "nd.sigmoid(64 *"),
        Fault("degrees for radians", 1, LOSS, "nd.arccos(cosines.detach())", "nd.degrees(nd.arccos(cosines.detach()))"),
        Fault(
            "scale inside arccos",
            1,
            LOSS,
            "nd.arccos(cosines.detach())",
            "nd.arccos((scale * cosines.detach()).clip(-1, 1))",
        ),
        Fault("sum for mean", 1, LOSS, "nd.mean(nd.sum(r_inter * cosines, axis=1))", "nd.sum(r_inter * cosines)"),
        Fault(
            "prototypes not normalised",
            1,
            LOSS,
            "unit_prototypes, _ = _normalise(class_weight)",
            "unit_prototypes = class_weight",
        ),
        Fault(
            "target in the inter sum, plain form",
            1,
            LOSS,
            "inter_weight(theta, scale, inter_slope, inter_center) * (1 - is_target)",
            "inter_weight(theta, scale, inter_slope, inter_center)",
        ),
        Fault("target in the inter sum, streamed form", 1, "streamed_cpu.py", "        push[targets] = 0\n", ""),
        Fault(
            "gradient without the tangent projection, streamed form",
            3,
            "streamed_cpu.py",
            "return (grad_unit - radial * unit) / norms",
            "return grad_unit / norms",
        ),
        Fault(
            "margin not differentiated",
            3,
            "margin_losses.py",
            "1 - target * target,",
            "1 - (target * target).detach(),",
        ),
        Fault("pixel scale ten times off", 5, TRAINER, "- 127.5) / 128", "- 127.5) / 12.8"),
        Fault("biased for unbiased variance", 5, "running_statistics.py", "* (n / (n - 1))", "* 1"),
        Fault(
            "learning rate inside the momentum",
            6,
            "optimizer.py",
            "    optimizer.learning_rate = learning_rate",
            _RATE_INSIDE_IN_MXNET,
        ),
        Fault(
            "labels off by one",
            5,
            TRAINER,
            "nd.array(part_labels, self.device",
            "nd.array((part_labels + 1) % self._num_classes, self.device",
        ),
        Fault("BGR for RGB", 5, TRAINER, "self._forward(part_images)", "self._forward(part_images[:, ::-1].copy())"),
        Fault("weight decay on BatchNorm", 5, "optimizer.py", "isinstance(module, NORMALISATIONS) or ", ""),
        Fault("momentum not saved", 7, "checkpoint.py", "tensor[:] = nd.array(", "tensor[:] = 1.001 * nd.array("),
    ),
    "jittor": (
        Fault("r not detached", 3, LOSS, "jt.arccos(cosines.detach())", "jt.arccos(cosines)"),
        Fault(
            "a and b swapped",
            1,
            LOSS,
            "intra_center)\n    r_inter = partial(inter_weight, scale=scale, slope=inter_slope, center=inter_center)",
            "inter_center)\n    r_inter = partial(inter_weight, scale=scale, slope=inter_slope, center=intra_center)",
        ),
        Fault(
            "slope 64, plain form",
            1,
            LOSS,
            "r_intra((is_target * theta).sum(1))",
            "r_intra((is_target * theta).sum(1), slope=64)",
        ),
        Fault(
            "slope 64, streamed form",
            1,
            STREAMED,
            "r_intra(jt.arccos(target_cosines))",
            "r_intra(jt.arccos(target_cosines), slope=64)",
        ),
        Fault("slope 64, r itself", 2, LOSS, "jt.sigmoid(_number(slope,", "jt.sigmoid(_number(64,"),
        Fault(
            "degrees for radians",
            1,
            LOSS,
            "jt.arccos(cosines.detach())",
            "(jt.arccos(cosines.detach()) * _number(57.29577951308232, cosines))",
        ),
        Fault(
            "scale inside arccos",
            1,
            LOSS,
            "jt.arccos(cosines.detach())",
            "jt.arccos((_number(64, cosines) * cosines.detach()).clamp(-1, 1))",
        ),
        Fault("sum for mean", 1, LOSS, "_mean((pushes * cosines).sum(1))", "(pushes * cosines).sum()"),
        Fault(
            "prototypes not normalised",
            1,
            LOSS,
            "unit_prototypes, _ = _normalise(class_weight)",
            "unit_prototypes = class_weight",
        ),
        Fault(
            "target in the inter sum, plain form",
            1,
            LOSS,
            "r_inter(theta) * (1 - is_target)",
            "r_inter(theta)",
        ),
        Fault(
            "target in the inter sum, streamed form",
            1,
            "streamed.cc",
            "if (begin <= j && j < end) cosines[j * n + i] = TARGET;",
            "",
        ),
        Fault(
            "gradient without the tangent projection, streamed form",
            3,
            STREAMED,
            "return (grad_unit - radial * unit) / norms",
            "return grad_unit / norms",
        ),
        Fault(
            "margin not differentiated",
            3,
            "margin_losses.py",
            "1 - target * target,",
            "1 - (target * target).detach(),",
        ),
        Fault("pixel scale ten times off", 5, TRAINER, "- 127.5) / 128", "- 127.5) / 12.8"),
        Fault(
            "biased for unbiased variance",
            5,
            "backbones/_layers.py",
            "(mean, var * _number(count / (count - 1), x)",
            "(mean, var * _number(1, x)",
        ),
        Fault(
            "learning rate inside the momentum",
            6,
            "optimizer.py",
            "    optimizer.lr = learning_rate",
            _RATE_INSIDE_IN_JITTOR,
        ),
        Fault(
            "labels off by one",
            5,
            TRAINER,
            "jt.array(part_labels,",
            "jt.array((part_labels + 1) % self._num_classes,",
        ),
        Fault("BGR for RGB", 5, TRAINER, "self._forward(part_images)", "self._forward(part_images[:, ::-1].copy())"),
        Fault("weight decay on BatchNorm", 5, "optimizer.py", "isinstance(module, NORMALISATIONS) or ", ""),
        Fault(
            "momentum not saved",
            7,
            "checkpoint.py",
            "value = jt.array(arrays[name],",
            "value = jt.array(1.001 * arrays[name],",
        ),
    ),
}
