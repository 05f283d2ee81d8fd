"""What the papers' comparisons are to show: plain data beside the rows."""

from directdet.reproduce.claims import Claim


def _more(text: str, more: str, less: str, source: str, margin: float = 0.0) -> Claim:
    """A claim that one row has a higher AP than another."""
    return Claim(text, (more,), (less,), source, margin=margin)


_NOT_WORSE = -0.01  # a margin: not by as much as a point of AP
_TABLE1_CLAIMS = (
    _more("batch 8 > batch 4", "direct_448_b8", "direct_448_b4", "Table 1: 41.5 and 40.6"),
    _more("batch 4 > batch 2", "direct_448_b4", "direct_448_b2", "Table 1: 40.6 and 39.3"),
    _more("448 > 320, both of batch 4", "direct_448_b4", "direct_320_b4", "Table 1: 40.6 and 39.9"),
    _more("448 of batch 8 > 640 of batch 4", "direct_448_b8", "direct_640_b4", "Table 1: 41.5 and 41.1"),
    _more("direct > ImageNet", "direct_448_b8", "imagenet", "Table 1: 41.5 and 38.2"),
    _more("direct > scratch (BN)", "direct_448_b8", "scratch_bn", "Table 1: 41.5 and 36.1"),
)
_TABLE2_CLAIMS = (
    _more("ImageNet: affine > fixed", "imagenet_affine", "imagenet_fixed", "Table 2: 39.2 and 38.7"),
    _more("fixed: direct > ImageNet", "fixed", "imagenet_fixed", "Table 2: 40.4 and 38.7"),
    _more("fixed > affine", "fixed", "affine", "Table 2: 40.4 and 37.8"),
    _more("fixed > SyncBN", "fixed", "sync", "Table 2: 40.4 and 37.9"),
    _more("affine is no worse than SyncBN", "affine", "sync", "Table 2: 37.8 and 37.9", _NOT_WORSE),
)
_TABLE5_CLAIMS = (
    _more("loading the box head helps", "box", "rpn", "Table 5: 41.7 and 39.3"),
    Claim(
        "the box head adds more than FPN and RPN do",
        ("box", "backbone"),
        ("rpn", "rpn"),
        "Table 5: +2.4 and +0.3",
    ),
    _more("the mask head does no harm", "mask", "box", "Table 5: 41.7 and 41.7", _NOT_WORSE),
)
_TABLE8_CLAIMS = (
    _more("RetinaNet: direct > ImageNet", "retinanet_direct", "retinanet_imagenet", "Table 8: 37.1 and 36.5"),
    _more("Faster R-CNN: direct > ImageNet", "rcnn_direct", "rcnn_imagenet", "Table 8: 39.3 and 37.4"),
    _more("Cascade R-CNN: direct > ImageNet", "cascade_direct", "cascade_imagenet", "Table 8: 41.5 and 40.3"),
    _more("Swin-T: direct > ImageNet", "swin_direct", "swin_imagenet", "Table 8: 45.0 and 43.8"),
)
_SCRATCH_CLAIMS = (
    _more("direct > scratch (BN), equal time", "direct", "scratch_bn", "Table 1: 41.5 and 36.1"),
    _more("direct > scratch (GN), equal time", "direct", "scratch_gn", "Table 3: 41.5 and 41.1"),
    Claim(
        "GN is slower in training",
        ("scratch_gn",),
        ("scratch_bn",),
        "Table 7: x 1.20",
        "s_per_step",
    ),
    Claim(
        "GN is slower in inference",
        ("scratch_bn",),
        ("scratch_gn",),
        "Table 7: x 1.13",
        "images_per_second",
    ),
)
_BN_CLAIMS = (  # each at its best learning rate
    _more("BN in head > no BN", "head_*", "none_*", "Table 1: 75.6 and 67.6"),
    _more("BN in backbone > BN in head", "backbone_*", "head_*", "Table 1: 78.0 and 75.6"),
    _more("BN in both is no worse than in backbone", "both_*", "backbone_*", "Table 1: 78.7 and 78.0", _NOT_WORSE),
    _more("BN in both, scratch > ImageNet without", "both_*", "imagenet_none_*", "Table 1: 78.7 and 77.1"),
    _more("BN in both > no BN, from ImageNet", "imagenet_both_*", "imagenet_none_*", "Table 1: 78.2 and 77.1"),
)


_MAIN_CLAIMS = (
    _more("direct P1x > ImageNet, both 1x", "p1x_1x", "imagenet_1x", "Table 3: 40.0 and 38.2"),
    _more("direct P3x + 1x > ImageNet 2x", "p3x_1x", "imagenet_2x", "Table 3: 41.5 and 39.2"),
    _more("direct P3x + 1x > scratch (SyncBN) 6x", "p3x_1x", "scratch_sync_6x", "Table 3: 41.5 and 39.6"),
    _more("direct P3x + 1x > scratch (GN) 6x", "p3x_1x", "scratch_gn_6x", "Table 3: 41.5 and 41.1"),
    _more("P2x > P1x", "p2x_1x", "p1x_1x", "Table 3: 41.0 and 40.0"),
    _more("P3x > P2x", "p3x_1x", "p2x_1x", "Table 3: 41.5 and 41.0"),
    _more("P4x is no worse than P3x", "p4x_1x", "p3x_1x", "Table 3: 41.7 and 41.5", _NOT_WORSE),
)
_SCHEDULE_CLAIMS = (
    _more("P2x > P1x, then 1x", "p2x_1x", "p1x_1x", "Table 4: 41.0 and 40.0"),
    _more("P3x > P2x, then 1x", "p3x_1x", "p2x_1x", "Table 4: 41.5 and 41.0"),
    _more("P4x is no worse than P3x, then 1x", "p4x_1x", "p3x_1x", "Table 4: 41.7 and 41.5", _NOT_WORSE),
    _more("after P1x: 2x > 1x", "p1x_2x", "p1x_1x", "Table 4: 40.4 and 40.0"),
    _more("after P3x: 1x > 2x", "p3x_1x", "p3x_2x", "Table 4: 41.5 and 41.0"),
)
_LENGTH_CLAIMS = (
    _more("after P1x: 24 epochs > 12", "p1x_24epochs", "p1x_12epochs", "Table 4: 40.4 and 40.0"),
    _more("after P3x: 12 epochs > 24", "p3x_12epochs", "p3x_24epochs", "Table 4: 41.5 and 41.0"),
    _more("12 epochs: P3x > P1x", "p3x_12epochs", "p1x_12epochs", "Table 4: 41.5 and 40.0"),
)
_MULTI_SCALE_CLAIMS = (
    _more("direct: multi-scale > single", "p1x_2x_ms", "p1x_2x", "Table 6: 41.0 and 40.4"),
    _more("ImageNet: multi-scale > single", "imagenet_2x_ms", "imagenet_2x", "Table 6: 40.2 and 39.2"),
    _more("multi-scale: direct > ImageNet", "p1x_2x_ms", "imagenet_2x_ms", "Table 6: 41.0 and 40.2"),
    _more("direct > scratch (SyncBN) 3x multi-scale", "p1x_1x", "scratch_sync_3x_ms", "Table 6: 40.0 and 36.0"),
)
_LESS_DATA_CLAIMS = (
    _more("1/10 of the data: direct > ImageNet", "coco10_direct", "coco10_imagenet", "Table 9: 23.2 and 22.1"),
    _more("VOC's setting: ImageNet > direct", "voc_imagenet", "voc_direct", "Table 9: 79.47 and 72.01"),
)
_GRID_CLAIMS = _TABLE1_CLAIMS[:4]  # those of its settings
_SECTION_4_CLAIMS = (
    _more("DSOD: with BN > without", "dsod300", "dsod300_no_bn", "section 4.2.1: 77.7 and 71.5"),
    _more("Faster R-CNN: ImageNet > scratch", "vgg16_imagenet", "vgg16_bn", "section 4.2.1: 73.2 and 67.2"),
    _more("Root-ResNet-34 > ResNet-18-A", "root_resnet34", "resnet18_a", "section 4.2.2: 80.4 and 75.3"),
)


def _faster(text: str, more: str, less: str, source: str) -> Claim:
    return Claim(text, (more,), (less,), source, "images_per_second")


_TWO_POINTS = 0.02  # the margin of what the stride gains
_LAYER_CLAIMS = (
    _more("7x7: stride 1 > 2 by 2 points", "resnet18_b", "resnet18", "Table 2: 77.6 and 73.1", _TWO_POINTS),
    _more(
        "three 3x3: stride 1 > 2 by 2 points",
        "root_resnet18",
        "resnet18_s2_3x3x3",
        "Table 2: 78.5 and 75.4",
        _TWO_POINTS,
    ),
    _more("root block > 7x7, stride 1", "root_resnet18", "resnet18_b", "Table 2: 78.5 and 77.6"),
    _more("three 3x3 > two", "root_resnet18", "resnet18_s1_2x3x3", "Table 2: 78.5 and 78.1"),
    _more("three 3x3 are no worse than five", "root_resnet18", "resnet18_s1_5x3x3", "Table 2: 78.5 both", _NOT_WORSE),
    _faster("stride 2 is faster than 1 (7x7)", "resnet18", "resnet18_b", "Table 2: x 1.61"),
    _faster("7x7 is faster than a root block", "resnet18_b", "root_resnet18", "Table 2: x 1.38"),
)

# By comparison, as in experiments.EXPERIMENTS.
_MONTAGE_CLAIMS = (
    _more("direct > Montage, equal time", "direct", "montage", "Table 3: 41.5 and 38.4"),
    _more("Montage > scratch (BN), equal time", "montage", "scratch_bn", "Tables 3 and 1: 38.4 and 36.1"),
)
CLAIMS = {
    "direct/table1": _TABLE1_CLAIMS,
    "direct/table2": _TABLE2_CLAIMS,
    "direct/table3": _MAIN_CLAIMS,
    "direct/table4": _SCHEDULE_CLAIMS,
    "direct/table5": _TABLE5_CLAIMS,
    "direct/table6": _MULTI_SCALE_CLAIMS,
    "direct/table8": _TABLE8_CLAIMS,
    "direct/table9": _LESS_DATA_CLAIMS,
    "direct/table10": (
        _more("direct P2x + 1x > 640 with SyncBN, 3x", "p2x_1x", "dropblock_sync_3x", "Table 10: 41.0 and 39.8"),
    ),
    "direct/section3.2": (
        _more("ImageNet style > Stitcher style", "imagenet_style", "stitcher_style", "section 3.2: 40.0 and 39.4"),
    ),
    "direct/figure1b": _MAIN_CLAIMS,
    "direct/figure2": _GRID_CLAIMS,
    "direct/figure4": _LENGTH_CLAIMS,
    "direct/scratch": _SCRATCH_CLAIMS,
    "direct/montage": _MONTAGE_CLAIMS,
    "scratchdet/table1": _BN_CLAIMS,
    "scratchdet/table2": _LAYER_CLAIMS,
    "scratchdet/section4": _SECTION_4_CLAIMS,
}
