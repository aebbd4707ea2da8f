# SPDX-License-Identifier: Apache-2.0
"""The training loss."""

from collections.abc import Sequence

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype


class CrossEntropy(nn.Cell):
    """Softmax cross entropy with label smoothing, averaged over the batch.

    Labels are class numbers [N], or the share of each class [N, classes] if images are mixed. The label's target is
    `1 - smooth_factor`, and the other classes share `smooth_factor` equally; so this factor is
    (num_classes - 1) / num_classes of the one that spreads it over all classes, label included.
    With `class_weights` each class counts so many times, and the average is a weighted one.
    Logits of any float type are taken in float32. There must be two classes or more, and 0 <= smooth_factor < 1. A
    label outside [0, num_classes) is not noticed here.

    In train mode `correct` counts the images whose largest logit is that of their class, of mixed ones the larger.
    """

    def __init__(self, smooth_factor: float = 0.0, num_classes: int = 1000,
                 class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label_target = Tensor(1.0 - smooth_factor, mstype.float32)
        self.other_target = Tensor(smooth_factor / (num_classes - 1), mstype.float32)
        self.class_weights = None if class_weights is None else Tensor(class_weights, mstype.float32)
        self.per_image = nn.SoftmaxCrossEntropyWithLogits()
        self.correct = Parameter(Tensor(0, mstype.int32), name="correct", requires_grad=False)

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        logits = ops.cast(logits, mstype.float32)
        if label.ndim == 1:
            target = ops.one_hot(label, self.num_classes, self.label_target, self.other_target)  # [N, classes]
        else:
            target = self.other_target + label * (self.label_target - self.other_target)
        if self.training:
            hits = ops.equal(ops.argmax(logits, 1), ops.argmax(target, 1))
            ops.assign_add(self.correct, ops.cast(hits.sum(), mstype.int32))
        if self.class_weights is None:
            return self.per_image(logits, target).mean()
        weighted = target * self.class_weights
        return -(weighted * ops.log_softmax(logits, 1)).sum() / weighted.sum()
