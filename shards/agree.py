"""Do the formats of a frame agree?

The picture in `pixel_values` must be the picture in `g_pixel_values`, and the region in `prompt_masks` the region in
`masks`. Nothing is resized: pictures are compared by means of blocks, regions by looking the original's pixels up.
"""

from shards.same_picture import Disagreement, pictures_agree
from shards.same_region import regions_agree

__all__ = ["Disagreement", "pictures_agree", "regions_agree"]
