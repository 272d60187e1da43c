"""Fixtures of the tests of metrics."""

import json
import warnings

import pytest
import torch
from tiny_metrics import Network, scripted
from transformers import CLIPConfig, CLIPModel

from kineograph.models.pocket import WEIGHTS as POCKET


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """File of a classifier of 4 classes on 2 frames of 16 x 16, with its input format beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which released extractors use
        path = scripted(tmp_path_factory.mktemp("c3d") / "c3d.pt", Network(4))
    settings = {"frames": 2, "height": 16, "width": 16, "gives": "classes"}
    path.with_name("c3d.pt.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """Folder of a CLIP with random weights and the pocket model's tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    text = sizes | {"vocab_size": 1000, "max_position_embeddings": 48, "eos_token_id": 863, "projection_dim": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((POCKET / "clip" / name).read_text())
    return folder
