"""The mean and standard deviation of ImageNet's pictures, RGB in [0, 1], as torchvision has them.

Most published networks subtract the one and divide by the other, so the mean is what zero stands
for inside them: the colour of a border padded with zeros, or of a pixel that says nothing.
"""

__all__ = ["MEAN", "STD"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
