# SPDX-License-Identifier: Apache-2.0
"""Nesterov's momentum for CPU, where `nn.Momentum` takes `use_nesterov` and leaves it aside."""

from mindspore import Tensor, nn, ops


class NesterovStep(nn.Cell):
    """Stands in for the operation by which `nn.Momentum` updates one parameter, with the same arguments.

    v <- momentum * v + gradient and weight <- weight - rate * (gradient + momentum * v): the second as a step along v
    and one along the gradient, each of which CPU has an operation for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.along_moment = ops.ApplyMomentum()
        self.along_gradient = ops.ApplyGradientDescent()

    def construct(self, weight: Tensor, moment: Tensor, learning_rate: Tensor, gradient: Tensor,
                  momentum: Tensor) -> Tensor:
        self.along_moment(weight, moment, learning_rate * momentum, gradient, momentum)
        return self.along_gradient(weight, learning_rate, gradient)
