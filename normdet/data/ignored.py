"""The objects of an image with ignored pixels, which are neither object nor background."""

from detectron2.structures import Instances
from torch import Tensor


class PartlyIgnored(Instances):
    """The objects of an image with a mask of its ignored pixels."""

    @property
    def ignored(self) -> Tensor:
        """The pixels that are neither object nor background: `(H, W)` bool."""
        return self._ignored

    @classmethod
    def of(cls, instances: Instances, ignored: Tensor) -> "PartlyIgnored":
        """`instances` with a mask of ignored pixels; fields are shared."""
        result = cls(instances.image_size, **instances.get_fields())
        result._ignored = ignored
        return result

    def to(self, *args, **kwargs) -> "PartlyIgnored":
        """Move to another device; detectron2's models call this."""
        return self.of(super().to(*args, **kwargs), self._ignored.to(*args, **kwargs))
