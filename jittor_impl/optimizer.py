"""SGD by the rule v = m v + (g + wd w), w = w - lr v of all backends, and which parameters have weight decay.

This is the rule of `jittor.optim.SGD`. The learning rate is not part of the momentum buffer. In MXNet's own SGD it is,
so the two differ from the first drop of the rate on. Jittor's own step uses one thread on a CPU, and rounds the rate,
the momentum and the decay to float32 even for float64 weights; the step here does neither.
"""

import jittor as jt
from jittor import Var, nn

from jittor_impl.backbones._layers import BatchNorm

NORMALISATIONS = (BatchNorm,)


def create_optimizer(modules: list[nn.Module], *, momentum: float, weight_decay: float) -> jt.optim.SGD:
    """SGD over all trainable parameters. BatchNorm parameters and biases have no weight decay."""
    decayed: list[Var] = []
    undecayed: list[Var] = []
    for root in modules:
        for module in root.modules():
            for name, parameter in vars(module).items():
                # a fixed weight and the running statistics have no gradients
                if isinstance(parameter, Var) and not parameter.is_stop_grad():
                    is_free = isinstance(module, NORMALISATIONS) or name == "bias"
                    (undecayed if is_free else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return _SGD(groups, lr=0.0, momentum=momentum)  # the loop sets the rate of each step


def set_learning_rate(optimizer: jt.optim.SGD, learning_rate: float) -> None:
    optimizer.lr = learning_rate


def momentum_buffer(optimizer: jt.optim.SGD, parameter: Var) -> Var:
    """The buffer v of a parameter, to read or to write; zeros before the first step."""
    for group in optimizer.param_groups:
        for candidate, buffer in zip(group["params"], group["values"], strict=True):
            if candidate is parameter:
                return buffer
    raise ValueError(f"{parameter.name()}: not a parameter of this optimizer")


class _SGD(jt.optim.SGD):
    def step(self, loss: Var | None = None, retain_graph: bool = False) -> None:
        self.pre_step(loss, retain_graph)
        for group in self.param_groups:
            for weight, gradient, buffer in zip(group["params"], group["grads"], group["values"], strict=True):
                new = _updated(weight, gradient, buffer, self.lr, self.momentum, group["weight_decay"])
                for old, value in zip((weight, buffer), new, strict=True):
                    old.update(value)
        self.post_step()


def _updated(
    weight: Var, gradient: Var, buffer: Var, learning_rate: float, momentum: float, weight_decay: float
) -> tuple[Var, Var]:
    """Weight and buffer after a step; of any shape."""
    if jt.flags.use_cuda:
        m, wd, lr = (jt.array(number, weight.dtype) for number in (momentum, weight_decay, learning_rate))
        buffer = m * buffer + (gradient + wd * weight)
        return weight - lr * buffer, buffer
    return jt.code(
        [weight.shape] * 2,
        [weight.dtype] * 2,
        [weight, gradient, buffer],
        cpu_src="""
            using T = in0_type;
            const T momentum = data["momentum"], weight_decay = data["weight_decay"], rate = data["learning_rate"];
            const int64_t size = in0->num;
            #pragma omp parallel for if (size > 10000)
            for (int64_t i = 0; i < size; i++) {
                out1_p[i] = momentum * in2_p[i] + (in1_p[i] + weight_decay * in0_p[i]);
                out0_p[i] = in0_p[i] - rate * out1_p[i];
            }""",
        data={"momentum": momentum, "weight_decay": weight_decay, "learning_rate": learning_rate},
    )
