"""Give RTAB-Map the global descriptor of the default model, for its search for loop closures.

Start RTAB-Map with these parameters:

    --Mem/GlobalDescriptorStrategy 1 --Kp/TfIdfLikelihoodUsed false --Mem/RehearsalSimilarity 1
    --PyDescriptor/Path /path/to/rtabmap_descriptor.py --PyDescriptor/Dim 1024

RTAB-Map imports this file in its own Python, where pairvpr must be installed with the extra `cpu`.
"""

import numpy as np

import pairvpr

model = pairvpr.load_model()


def init(dim: int) -> None:
    """Check the number that RTAB-Map was told with PyDescriptor/Dim."""
    if dim != model.bundle.info.dims.descriptor:
        print(f"PyDescriptor/Dim is {dim}, but descriptors have {model.bundle.info.dims.descriptor} numbers")


def extract(image: np.ndarray) -> np.ndarray:
    """Turn an image (H, W, 1 or 3), BGR in signed bytes as RTAB-Map passes it, into a descriptor (1, D)."""
    pixels = image.view(np.uint8)[..., ::-1]
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    return model.encode([np.ascontiguousarray(pixels)]).descriptors
