"""SFace in PyTorch's autograd, checked: python -m parity_tests --backends examples.pytorch_parity --levels 1 2 3."""

import torch
from torch.nn.functional import normalize


def sface_loss(embeddings, class_weight, labels, *, reduction="mean", sample_weight=None, **parameters):
    """The loss of each sample, their mean or their sum; and its two parts."""
    cosines = (normalize(embeddings, eps=1e-12) @ normalize(class_weight, eps=1e-12).T).clamp(-1, 1)
    with torch.no_grad():  # r re-scales the gradient and is not differentiated
        pull, push = rescaling(torch.acos(cosines), **parameters)
    own = torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, labels[:, None], True)
    intra_loss = -(pull * cosines)[own]
    inter_loss = (push * cosines).masked_fill(own, 0).sum(1)
    if sample_weight is not None:
        intra_loss, inter_loss = sample_weight * intra_loss, sample_weight * inter_loss
    if reduction != "none":
        intra_loss, inter_loss = (getattr(part, reduction)() for part in (intra_loss, inter_loss))
    return intra_loss + inter_loss, intra_loss, inter_loss


def rescaling(theta, *, scale=64.0, intra_slope=80.0, inter_slope=80.0, intra_center=0.87, inter_center=1.2):
    """r_intra and r_inter of angles."""
    pull = scale * torch.sigmoid(intra_slope * (theta - intra_center))
    push = scale * torch.sigmoid(-inter_slope * (theta - inter_center))
    return pull, push


# What the suite asks: NumPy in, NumPy out


def describe():
    """What the table says of this backend."""
    return {"version": torch.__version__, "device": "cpu", "threads": torch.get_num_threads()}


def sface(embeddings, class_weight, labels, *, form, block_size, sample_weight=None, **options):
    """Loss, its two parts and both gradients. There is one form; it answers for both."""
    x, w = (torch.tensor(array, requires_grad=True) for array in (embeddings, class_weight))
    weights = None if sample_weight is None else torch.tensor(sample_weight)
    losses = sface_loss(x, w, torch.tensor(labels), sample_weight=weights, **options)
    losses[0].sum().backward()
    names = ("loss", "intra_loss", "inter_loss")
    out = {name: loss.detach().numpy() for name, loss in zip(names, losses, strict=True)}
    return out | {"grad_embeddings": x.grad.numpy(), "grad_class_weight": w.grad.numpy()}


def sface_weights(theta, **parameters):
    """r_intra and r_inter of angles."""
    pull, push = rescaling(torch.tensor(theta), **parameters)
    return {"intra_weight": pull.numpy(), "inter_weight": push.numpy()}
