"""The objects of an image with ignored pixels, which are neither object nor background."""

from detectron2.structures import Instances
from torch import Tensor


class PartlyIgnored(Instances):
    """The objects of an image with a mask of its ignored pixels."""

    @property
    def ignored(self) -> Tensor:
        """Where the image is neither object nor background: `(H, W)` bool."""
        return self._ignored

    @classmethod
    def of(cls, instances: Instances, ignored: Tensor) -> "PartlyIgnored":
        """`instances` with a mask of what is ignored; fields are shared."""
        result = cls(instances.image_size, **instances.get_fields())
        result._ignored = ignored
        return result

    def to(self, *args, **kwargs) -> "PartlyIgnored":
        """On another device, as detectron2's models ask for it."""
        return self.of(super().to(*args, **kwargs), self._ignored.to(*args, **kwargs))
