"""Masks that other tools have made, as `ImageMasks` of every view.

imported = read_foreign("object_mask", scene.views)
for index in range(len(scene.views)):
    masks = imported.load(index)  # None: this view has none
print(*imported.decisions, sep="\n")
"""

from cgc.masks.importers.formats import FORMATS, Format
from cgc.masks.importers.reading import Imported, read_foreign

__all__ = ["FORMATS", "Format", "Imported", "read_foreign"]
