"""How the images look that backbones are pretrained on."""

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training set, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
