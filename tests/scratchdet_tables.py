"""ScratchDet's Tables 1 and 2, written down a second time: what the package says of them is checked against it."""

GPUS = 4  # section 4.1
RATES = (0.001, 0.01, 0.05)
# Table 1: from ImageNet, BN in the backbone, BN in the head; mAP at each of the rates, None for NaN.
TABLE1 = (
    (False, False, False, (67.6, None, None)),
    (False, False, True, (71.0, 75.6, None)),
    (False, True, False, (72.8, 77.8, 78.0)),
    (False, True, True, (71.8, 77.3, 78.7)),
    (True, False, False, (77.1, 76.9, None)),
    (True, True, True, (77.6, 78.2, 75.5)),
)
# Table 2: stride of the first convolution, convolutions of the root and their kernel, fps, mAP.
TABLE2 = (
    (2, 1, 7, 59.5, 73.1),
    (2, 1, 3, 62.9, 73.2),
    (2, 2, 3, 58.1, 74.9),
    (2, 3, 3, 54.5, 75.4),
    (1, 1, 7, 37.0, 77.6),
    (1, 1, 3, 37.2, 77.8),
    (1, 2, 3, 31.5, 78.1),
    (1, 3, 3, 26.9, 78.5),
    (1, 4, 3, 24.3, 78.4),
    (1, 5, 3, 21.8, 78.5),
)
