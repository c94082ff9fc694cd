"""The folder of losses: its registry, its examples, and copies of it in another project."""

from mxnet import autograd, nd

from common.tests.backend_checks.losses import *  # noqa: F403


def train_a_step(module, case, **options):
    import importlib

    import numpy as np

    np.bool = bool  # which MXNet 1.9.1 needs
    from mxnet import autograd, gluon, nd

    head = importlib.import_module(module).SFaceHead(*case["class_weight"].shape[::-1], **options)
    head.initialize()
    head.class_weight.set_data(nd.array(case["class_weight"]))
    trainer = gluon.Trainer(head.collect_params(), "sgd", {"learning_rate": 0.1})
    with autograd.record():
        loss = head(nd.array(case["embeddings"]), nd.array(case["labels"], dtype="int64")).loss
    loss.backward()
    trainer.step(1)
    return loss.asscalar(), head.class_weight.data().asnumpy()


def half_precision(head, case):
    head.initialize()
    head.class_weight.set_data(nd.array(case.class_weight))
    head.cast("float16")
    embeddings = nd.array(case.embeddings, dtype="float16")
    with autograd.record():
        loss = head(embeddings, nd.array(case.labels, dtype="int32")).loss
    loss.backward()
    weight = head.class_weight
    rounded, class_weight, gradient = (array.asnumpy() for array in (embeddings, weight.data(), weight.grad()))
    return rounded, class_weight, loss.asscalar(), gradient
