"""Layers that replace Jittor's, which are slow or compute something else. The file needs Jittor only.

On a CPU, Jittor runs fused operators in one thread, and a MobileFaceNet's step takes 2.5 times as long. So both layers
have their own loops there: the threads share the channels, and the order of a channel's sums is fixed. On a CUDA device
the layers use Jittor's operators.
"""

import jittor as jt
from jittor import Var, nn

# x, y, dy and dx are (N, C, H, W) or (N, C), all others (C,). Sums within an image have its dtype, sums over images are
# in double precision.
_LOOPS = """
#include <cmath>

struct Shape { int64_t batch, channels, cells; };

template <class T> Shape shape_of(const T& x) {
    return {x->shape[0], x->shape[1], x->num / (x->shape[0] * x->shape[1])};
}

template <class T, class F> double sum(const Shape& s, int64_t c, F term) {
    double total = 0;
    for (int64_t n = 0; n < s.batch; n++) {
        T part = 0;
        const int64_t first = (n * s.channels + c) * s.cells;
        for (int64_t i = first; i < first + s.cells; i++) part += term(i);
        total += part;
    }
    return total;
}

template <class F> void each(const Shape& s, int64_t c, F body) {
    for (int64_t n = 0; n < s.batch; n++) {
        const int64_t first = (n * s.channels + c) * s.cells;
        for (int64_t i = first; i < first + s.cells; i++) body(i);
    }
}

template <class T> void batch_norm(Shape s, const T* __restrict__ x, const T* weight, const T* bias, double eps,
                                   T* __restrict__ y, T* means, T* variances) {
    const double count = s.batch * s.cells;
    #pragma omp parallel for
    for (int64_t c = 0; c < s.channels; c++) {
        const T mean = sum<T>(s, c, [=](int64_t i) { return x[i]; }) / count;
        const T variance = sum<T>(s, c, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
        const T scale = weight[c] / std::sqrt(variance + T(eps)), shift = bias[c];
        each(s, c, [=](int64_t i) { y[i] = (x[i] - mean) * scale + shift; });
        means[c] = mean;
        variances[c] = variance;
    }
}

template <class T> void batch_norm_backward(Shape s, const T* __restrict__ x, const T* weight, double eps,
                                            const T* means, const T* variances, const T* __restrict__ dy,
                                            T* __restrict__ dx, T* dweight, T* dbias) {
    const double count = s.batch * s.cells;
    #pragma omp parallel for
    for (int64_t c = 0; c < s.channels; c++) {
        const T mean = means[c], inverse_std = 1 / std::sqrt(variances[c] + T(eps));
        const double along_one = sum<T>(s, c, [=](int64_t i) { return dy[i]; });
        const double along_x = sum<T>(s, c, [=](int64_t i) { return dy[i] * (x[i] - mean); }) * inverse_std;
        const T scale = weight[c] * inverse_std, constant = along_one / count, slope = along_x / count * inverse_std;
        each(s, c, [=](int64_t i) { dx[i] = scale * (dy[i] - constant - slope * (x[i] - mean)); });
        dweight[c] = along_x;
        dbias[c] = along_one;
    }
}

template <class T> void affine(Shape s, const T* __restrict__ x, const T* means, const T* scales, const T* biases,
                               T* __restrict__ y) {
    #pragma omp parallel for
    for (int64_t c = 0; c < s.channels; c++) {
        const T mean = means[c], scale = scales[c], bias = biases[c];
        each(s, c, [=](int64_t i) { y[i] = (x[i] - mean) * scale + bias; });
    }
}

template <class T> void prelu(Shape s, const T* __restrict__ x, const T* weight, T* __restrict__ y) {
    #pragma omp parallel for
    for (int64_t c = 0; c < s.channels; c++) {
        const T slope = weight[c];
        each(s, c, [=](int64_t i) { y[i] = x[i] > 0 ? x[i] : slope * x[i]; });
    }
}

template <class T> void prelu_backward(Shape s, const T* __restrict__ x, const T* weight, const T* __restrict__ dy,
                                       T* __restrict__ dx, T* dweight) {
    #pragma omp parallel for
    for (int64_t c = 0; c < s.channels; c++) {
        const T slope = weight[c];
        each(s, c, [=](int64_t i) { dx[i] = x[i] > 0 ? dy[i] : slope * dy[i]; });
        dweight[c] = sum<T>(s, c, [=](int64_t i) { return x[i] > 0 ? T(0) : dy[i] * x[i]; });
    }
}
"""


class BatchNorm(nn.Module):
    """Batch normalisation of (N, C) or (N, C, H, W), over all axes but C.

    Training normalises by the mean and the biased variance of the batch, and moves the running statistics by
    `momentum`. The running variance is unbiased, n / (n - 1) times the biased one, as in PyTorch, so a checkpoint means
    the same to every backend. jittor.nn.BatchNorm stores the biased one, and computes it as E[x^2] - E[x]^2, which
    loses digits if the mean is large.

    Raises:
        ValueError: `execute` gets a single value a channel in training; its variance is 0.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = jt.ones(num_features)
        self.bias = jt.zeros(num_features)
        self.running_mean = jt.zeros(num_features).stop_grad()
        self.running_var = jt.ones(num_features).stop_grad()

    def execute(self, x: Var) -> Var:
        if not self.is_training():
            scale = self.weight / jt.sqrt(self.running_var + _number(self.eps, x))
            return _affine(x, self.running_mean, scale, self.bias)
        count = x.numel() // self.num_features
        if count < 2:
            raise ValueError(f"expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        if jt.flags.use_cuda:
            y, mean, var = _batch_norm(x, self.weight, self.bias, self.eps)
        else:
            function = _BatchNormLoops(self.eps)
            y = function(x, self.weight, self.bias)
            mean, var = function.mean, function.var
        self._follow(mean, var * _number(count / (count - 1), x))
        return y

    def _follow(self, mean: Var, var: Var) -> None:
        momentum = _number(self.momentum, mean)
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            running.update((running + momentum * (new.detach() - running)).stop_grad())


class SyncBatchNorm(BatchNorm):
    """BatchNorm over the batches of all processes of an MPI job; the batches have the same size.

    A BatchNorm becomes one by `module.__class__ = SyncBatchNorm`.
    """

    def execute(self, x: Var) -> Var:
        if not self.is_training():
            return super().execute(x)
        function = _SyncBatchNormFunction(self.eps)
        y = function(x, self.weight, self.bias)
        count = x.numel() // self.num_features * jt.world_size
        self._follow(function.mean, function.var * _number(count / (count - 1), x))
        return y


class PReLU(nn.Module):
    """max(0, x) + weight min(0, x), one weight (C,) a channel of (N, C, H, W)."""

    def __init__(self, num_parameters: int, init: float = 0.25) -> None:
        super().__init__()
        self.weight = jt.full((num_parameters,), init)

    def execute(self, x: Var) -> Var:
        return _prelu(x, self.weight) if jt.flags.use_cuda else _PReLULoops()(x, self.weight)


class _BatchNormLoops(jt.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias; `mean` and `var` are then the batch's mean and biased variance."""

    def __init__(self, eps: float) -> None:
        self.eps = eps  # part of the source: Jittor keeps no value of an array outside of fused operators

    def execute(self, x: Var, weight: Var, bias: Var) -> Var:
        channels = weight.shape
        y, self.mean, self.var = jt.code(
            [x.shape, channels, channels],
            [x.dtype] * 3,
            [x, weight, bias],
            cpu_header=_LOOPS,
            cpu_src=f"batch_norm(shape_of(in0), in0_p, in1_p, in2_p, {self.eps!r}, out0_p, out1_p, out2_p);",
        )
        self.inputs = x, weight
        return y

    def grad(self, grad_y: Var) -> tuple[Var, ...]:
        x, weight = self.inputs
        return jt.code(
            [x.shape, weight.shape, weight.shape],
            [x.dtype] * 3,
            [x, weight, self.mean, self.var, grad_y],
            cpu_header=_LOOPS,
            cpu_src=f"""
            batch_norm_backward(
                shape_of(in0), in0_p, in1_p, {self.eps!r}, in2_p, in3_p, in4_p, out0_p, out1_p, out2_p
            );""",
        )


class _SyncBatchNormFunction(jt.Function):
    """`_BatchNormLoops` over the x of all processes; the gradients of weight and bias are those of this process."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def execute(self, x: Var, weight: Var, bias: Var) -> Var:
        self.axes = [0, *range(2, x.ndim)]
        self.count = _number(x.numel() // x.shape[1] * jt.world_size, x)
        self.mean = _sum_of_all(x.sum(self.axes)) / self.count
        centred = x - self.mean.broadcast(x, self.axes)
        self.var = _sum_of_all((centred * centred).sum(self.axes)) / self.count
        inverse_std = _number(1, x) / jt.sqrt(self.var + _number(self.eps, x))
        self.normalised, self.scale = centred * inverse_std.broadcast(x, self.axes), weight * inverse_std
        return self.normalised * weight.broadcast(x, self.axes) + bias.broadcast(x, self.axes)

    def grad(self, grad_y: Var) -> tuple[Var, ...]:
        along_one, along_x = grad_y.sum(self.axes), (grad_y * self.normalised).sum(self.axes)
        constant, slope, scale = (
            values.broadcast(grad_y, self.axes)
            for values in (_sum_of_all(along_one) / self.count, _sum_of_all(along_x) / self.count, self.scale)
        )
        return scale * (grad_y - constant - slope * self.normalised), along_x, along_one


class _PReLULoops(jt.Function):
    """`_prelu` by loops."""

    def execute(self, x: Var, weight: Var) -> Var:
        self.inputs = x, weight
        source = "prelu(shape_of(in0), in0_p, in1_p, out0_p);"
        return jt.code(x.shape, x.dtype, [x, weight], cpu_header=_LOOPS, cpu_src=source)

    def grad(self, grad_y: Var) -> tuple[Var, ...]:
        x, weight = self.inputs
        return jt.code(
            [x.shape, weight.shape],
            [x.dtype] * 2,
            [x, weight, grad_y],
            cpu_header=_LOOPS,
            cpu_src="prelu_backward(shape_of(in0), in0_p, in1_p, in2_p, out0_p, out1_p);",
        )


def _sum_of_all(values: Var) -> Var:
    """Sum over the processes of an MPI job, at once: in a graph that runs later, the order of the sums is not fixed."""
    total = values.mpi_all_reduce("add")
    total.sync()
    return total


def _affine(x: Var, mean: Var, scale: Var, bias: Var) -> Var:
    """(x - mean) * scale + bias, for each channel."""
    if jt.flags.use_cuda or not jt.flags.no_grad:
        axes = [0, *range(2, x.ndim)]
        mean, scale, bias = (values.broadcast(x, axes) for values in (mean, scale, bias))
        return (x - mean) * scale + bias
    source = "affine(shape_of(in0), in0_p, in1_p, in2_p, in3_p, out0_p);"
    return jt.code(x.shape, x.dtype, [x, mean, scale, bias], cpu_header=_LOOPS, cpu_src=source)


def _batch_norm(x: Var, weight: Var, bias: Var, eps: float) -> tuple[Var, Var, Var]:
    """Compute `_BatchNormLoops` by operators; returns the batch's mean and biased variance too."""
    axes, count = [0, *range(2, x.ndim)], _number(x.numel() // x.shape[1], x)
    # sums, as the gradient of Var.mean has 1 / n rounded to float32
    mean = x.sum(axes) / count
    centred = x - mean.broadcast(x, axes)
    var = (centred * centred).sum(axes) / count
    scale = weight / jt.sqrt(var + _number(eps, x))
    return centred * scale.broadcast(x, axes) + bias.broadcast(x, axes), mean, var


def _prelu(x: Var, weight: Var) -> Var:
    return jt.ternary(x > 0, x, x * weight.broadcast(x, [0, *range(2, x.ndim)]))


def _number(value: float, like: Var) -> Var:
    """Make a number in the dtype of `like`: Jittor rounds a Python number to float32, also beside float64."""
    return jt.array(value, like.dtype)
