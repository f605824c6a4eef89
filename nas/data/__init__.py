"""Data sets: read by a source, split into train (weights), val (alpha) and test, served in batches.

To add a data set, write one function in `nas.data.sources` and one file in ``configs/data``:

1. a source, a function that reads the data and returns `Images`: pixels, labels, the names of the
   classes, and the parts that the data comes in ("train" alone if it is not divided);
2. the data set, a function that returns ``DataModule(source, **options)``. It takes the options of
   every data set as ``**options: Unpack[DataOptions]``, and before them those of its own;
3. a YAML file of the data set's name, with ``_target_: nas.data.sources.<function>``,
   ``_partial_: true`` and the values of its options.

``nas search data=<name>`` then takes it. A function in a package of your own works as well: a
configuration may name anything that can be imported.
"""

from nas.data.datamodule import DataModule, DataOptions
from nas.data.sources import cifar10, digits, fashion_mnist, image_folder
from nas.data.splits import Images, Part, Source

__all__ = [
    "DataModule",
    "DataOptions",
    "Images",
    "Part",
    "Source",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image_folder",
]
