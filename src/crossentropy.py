# SPDX-License-Identifier: Apache-2.0
"""The training loss."""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype


class CrossEntropy(nn.Cell):
    """Softmax cross entropy with label smoothing, averaged over the batch.

    The label's target is `1 - smooth_factor`, and the other classes share `smooth_factor` equally; so this
    factor is (num_classes - 1) / num_classes of the one that spreads it over all classes, label included.
    Logits of any float type are taken in float32. Fewer than two classes, or a factor outside [0, 1), raise
    ValueError. A label outside [0, num_classes) is not noticed here.
    """

    def __init__(self, smooth_factor: float = 0.0, num_classes: int = 1000) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}: a cross entropy needs at least 2 classes")
        if not 0.0 <= smooth_factor < 1.0:
            raise ValueError(f"smooth_factor is {smooth_factor}: it must be at least 0 and below 1")
        self.num_classes = num_classes
        self.label_target = Tensor(1.0 - smooth_factor, mstype.float32)
        self.other_target = Tensor(smooth_factor / (num_classes - 1), mstype.float32)
        self.per_image = nn.SoftmaxCrossEntropyWithLogits()

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        target = ops.one_hot(label, self.num_classes, self.label_target, self.other_target)  # [N, classes]
        return self.per_image(ops.cast(logits, mstype.float32), target).mean()
