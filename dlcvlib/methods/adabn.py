"""AdaBN, chapter 3: a source-only classifier with the target's BatchNorm statistics.

No weight is trained: mean and variance of each BatchNorm layer are estimated again on unlabelled
images of the target, one layer's after the other's in the same passes.

Reference: Li et al.: Revisiting Batch Normalization for Practical Domain Adaptation. ICLR 2017
Workshop. arXiv:1603.04779
"""

from torch import Tensor

from dlcvlib.data.batches import CHUNK, to_float
from dlcvlib.methods.averaging import with_statistics
from dlcvlib.methods.classifier import Classifier


class AdaBN(Classifier):
    """A copy of a trained classifier, for the target; the source's images are left to the original.

    Args:
        source_only: trained on the source's labels.
        target: the target's training images, (N, 3, 32, 32) uint8, at least two.
    """

    name = "adabn"

    def __init__(self, source_only: Classifier, target: Tensor) -> None:
        super().__init__(source_only.settings)
        # Parts of about the same size: BatchNorm cannot normalise a single image.
        parts = target.to(source_only.device).tensor_split(max(1, len(target) // CHUNK))
        adapted = with_statistics(source_only, map(to_float, parts))
        self.extractor, self.classifier = adapted.extractor, adapted.classifier
        self.source_only = source_only
        self.eval()

    def represent(self, images: Tensor, source: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As `Classifier.represent`."""
        return self.source_only(images) if source else self(images)
