"""Control maps from frames, by networks with random weights and the architectures that users have."""

import numpy as np
import pytest
import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    RTDetrConfig,
    RTDetrForObjectDetection,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil

from kineograph.errors import InputError
from kineograph.models import annotators

FRAME = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)


def test_edges_of_a_square() -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[8:24, 8:24] = 255
    edges = annotators.load_annotator("canny")(frame)
    assert edges.shape == frame.shape and edges.dtype == np.uint8
    assert edges[16, 7:9].any() and not edges[12:20, 12:20].any()


@pytest.fixture
def depth_folder(tmp_path):
    torch.manual_seed(0)
    backbone = Dinov2Config(
        image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8,
        head_hidden_size=4, patch_size=14,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path)
    DPTImageProcessorPil(
        size={"height": 28, "width": 28}, ensure_multiple_of=14, keep_aspect_ratio=True
    ).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # of the libraries, about torchvision
def test_depth_is_stretched_from_black_to_white(depth_folder) -> None:
    found = annotators.load_annotator("depth", str(depth_folder))(FRAME)
    assert found.shape == FRAME.shape and found.dtype == np.uint8
    assert (found.min(), found.max()) == (0, 255)
    assert (found[..., 0] == found[..., 2]).all()


@pytest.fixture
def pose_folders(tmp_path):
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        out_indices=[2], out_features=["stage2"],
    )  # fmt: skip
    pose = VitPoseConfig(backbone_config=backbone, num_labels=17, scale_factor=4, use_simple_decoder=True)
    VitPoseForPoseEstimation(pose).save_pretrained(tmp_path / "pose")
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(tmp_path / "pose")
    detector = RTDetrConfig(
        d_model=16, encoder_hidden_dim=16, encoder_in_channels=[16, 16, 16], decoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=8,
        decoder_layers=1, encoder_layers=1, num_labels=1,
        backbone_config={"model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16],
                         "depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]},
    )  # fmt: skip
    RTDetrForObjectDetection(detector).save_pretrained(tmp_path / "persons")
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "persons")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_poses_of_all_detected_persons(pose_folders, monkeypatch: pytest.MonkeyPatch, threshold) -> None:
    monkeypatch.setattr(annotators, "PERSON_THRESHOLD", threshold)
    monkeypatch.setattr(annotators, "JOINT_THRESHOLD", -1.0)
    found = annotators.load_pose_annotator(str(pose_folders / "pose"), str(pose_folders / "persons"))(FRAME)
    assert found.shape == FRAME.shape
    assert found.any() == (threshold == 0)


def test_skeletons_have_openposes_colours_and_a_neck() -> None:
    positions = np.zeros((17, 2))
    positions[0], positions[5], positions[6] = (32, 8), (40, 20), (24, 20)
    scores = np.zeros(17)
    scores[[0, 5, 6]] = 1
    found = annotators.draw_skeletons((64, 64), [(positions, scores)])
    assert tuple(found[8, 32]) == (255, 0, 0)  # the nose
    assert tuple(found[20, 32]) == (255, 85, 0)  # the neck, half way between the shoulders
    assert tuple(found[20, 24]) == (255, 170, 0) and tuple(found[20, 40]) == (85, 255, 0)
    assert not found[40:].any()


def test_unknown_kinds_and_missing_networks_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="maps of the kind 'seg', only for canny, depth, pose: .*seg-map=VIDEO"):
        annotators.load_annotator("seg")
    with pytest.raises(InputError, match="depth of an image is estimated by .*nowhere.*`control` depth-map=VIDEO"):
        annotators.load_depth_annotator(str(tmp_path / "nowhere"))
