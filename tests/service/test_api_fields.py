"""Fields of requests: those of the declaration, files of the request and of the opened folder, and what is refused."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kineograph.errors import InputError
from kineograph.generation.options import GenerateOptions
from kineograph.models.loading.options import LoadOptions
from kineograph.options import declared
from kineograph.service import declaration
from kineograph.service.api.bodies import Body, Upload
from kineograph.service.api.fields import Fields, InputFolders, build_request
from kineograph.service.api.responses import ApiError
from kineograph.service.declaration import OF_OPERATOR, ModelFacts, declare, declare_options, read_declaration
from kineograph.service.jobs import JobRequest, new_job_id, with_names
from kineograph.service.queue import JobQueue

FIELDS = Fields.of(read_declaration())


@pytest.fixture
def folders(tmp_path: Path) -> InputFolders:
    (tmp_path / "opened" / "more").mkdir(parents=True)
    (tmp_path / "opened" / "more" / "fish.png").write_bytes(b"opened")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "opened" / "link.png").symlink_to(tmp_path / "secret.png")
    return InputFolders(tmp_path / new_job_id(), tmp_path / "opened", 1000)


def build(folders: InputFolders, *uploads: Upload, **values: Any) -> JobRequest:
    return build_request(FIELDS, Body({"prompt": "a fish", **values}, uploads, is_form=False), folders)


def form(folders: InputFolders, *uploads: Upload, **values: Any) -> JobRequest:
    return build_request(FIELDS, Body({"prompt": "a fish", **values}, uploads, is_form=True), folders)


def upload(field: str, name: str, key: str = "", content: bytes = b"sent", kind: str = "") -> Upload:
    return Upload(field, key, name, kind, io.BytesIO(content))


def test_the_file_has_the_declared_options() -> None:
    """Write it again by `python -m kineograph.service.declaration > src/kineograph/service/declaration.json`."""
    assert json.loads(declaration.FILE.read_text())["options"] == json.loads(json.dumps(declare_options()))


@pytest.mark.slow
def test_the_file_has_the_built_in_models() -> None:
    assert json.loads(declaration.FILE.read_text()) == json.loads(json.dumps(declare({})))


def test_every_option_is_a_field_but_those_of_the_operator() -> None:
    names = {*declared(GenerateOptions), *declared(LoadOptions)}
    assert names - OF_OPERATOR == {each for each in FIELDS.declaration.options if each in names}
    assert not OF_OPERATOR & {*FIELDS.declaration.options}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"num_frame": 3}, "there is no field `num_frame`: did you mean 'num_frames'?"),
        ({"device": "cuda"}, "`device` is no field of a request, since the operator decides it"),
        ({"video_device": "cuda"}, "the operator decides it"),
        ({"num_frames": 0}, "`num_frames` is a whole number from 1 to 4096, not 0"),
        ({"num_frames": True}, "`num_frames` is a whole number"),
        ({"guidance_scale": "7"}, "`guidance_scale` is a number, not '7'"),
        ({"sampler": "dpm"}, "`sampler` is ddim or "),
        ({"seed": [1, 2]}, "`seed` is a whole number from 0 to 9223372036854775807, not"),
        ({"prompt": " "}, "`prompt` is empty"),
        ({"prompt": ["a", "b"]}, "`prompt` is a text"),
        ({"seconds": "4s"}, "`seconds` is a number of seconds"),
        ({"seconds": "1025"}, "`seconds` is at most 1024 at 4 frames per second"),
        ({"seconds": "4", "num_frames": 4}, "give one of them"),
        ({"size": "big"}, "`size` is WIDTHxHEIGHT"),
        ({"size": "100x64"}, "`size` is of multiples of 8 .*: 96x64 is near"),
        ({"size": "64x64", "width": 64}, "give one of them"),
        ({"command": "edit"}, "`video` is missing"),
        ({"input_reference": {}}, "`input_reference` is a file, or"),
        ({"input_reference": {"file_id": "x"}}, "`input_reference` names a file"),
        ({"image": "data:image/png,xx"}, "a data URL is data:TYPE;base64,CONTENT"),
        ({"image": "data:image/png;base64,x"}, "is not base64"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(folders: InputFolders, values: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as refused:
        build(folders, **values)
    assert "\n" not in str(refused.value)
    assert not folders.uploads.exists()


@pytest.mark.parametrize("field", ["model", "video_model"])
def test_only_models_that_are_listed_are_used(folders: InputFolders, field: str) -> None:
    with pytest.raises(ApiError, match=rf"`{field}` is one of pocket") as refused:
        build(folders, **{field: str(folders.opened)})
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.png", "more/../../secret.png", "link.png", ".", "", "more\0x", "x" * 5000, "~"]
)
@pytest.mark.parametrize("field", ["image", "lora", "control"])
def test_no_file_outside_the_opened_folder_is_named(folders: InputFolders, field: str, name: str) -> None:
    with pytest.raises(InputError, match=f"`{field}` names a file of the request or of the opened folder, and"):
        build(folders, **{field: {"canny": name} if field == "control" else name})


def test_nothing_is_named_without_an_opened_folder(folders: InputFolders) -> None:
    with pytest.raises(InputError, match="`image` names a file that comes with the request, and 'fish.png' is none"):
        build(folders._replace(opened=None), image="fish.png")


def test_no_url_is_opened(folders: InputFolders) -> None:
    with pytest.raises(ApiError, match="this server opens none") as refused:
        build(folders, image="http://127.0.0.1/fish.png")
    assert refused.value.code == "url_not_allowed"


def test_files_are_those_of_the_opened_folder(folders: InputFolders) -> None:
    request = build(folders, image="more/fish.png", lora=[["more/fish.png", 0.5], "more"], adapter="pocket-fox")
    fish, folder = (str((folders.opened or Path()) / name) for name in ("more/fish.png", "more"))
    assert (request.options["image"], request.options["lora"]) == (fish, [[fish, 0.5], folder])
    assert request.options["adapter"] == "pocket-fox"


def test_files_are_uploads_by_their_names_or_fields(folders: InputFolders) -> None:
    request = form(
        folders,
        upload("files", "in.mp4"),
        upload("control", "../depth.mp4", key="depth"),
        upload("lora", "a.safetensors", content=b"a"),
        upload("lora", "b.safetensors", content=b"b"),
        control={"canny": "in.mp4"},
    )
    control, lora = request.options["control"], request.options["lora"]
    assert [Path(each).name for each in control.values()] == ["0_in.mp4", "1_depth.mp4"]
    assert [Path(each).read_bytes() for each in lora] == [b"a", b"b"]
    assert {Path(each).parent for each in (*control.values(), *lora)} == {folders.uploads}
    assert request.job_id == folders.uploads.name
    assert request.metadata["num_frames"] is None  # it follows from the video


@pytest.mark.parametrize(
    ("uploads", "text"),
    [
        ([upload("files", "a"), upload("files", "a")], "two files are named 'a'"),
        ([upload("prompt_at", "a")], "`prompt_at` takes no file"),
        ([upload("image", "a"), upload("image", "b")], "`image` is one file"),
        ([upload("image", "a.png", content=b"")], "the file 'a.png' is empty"),
        ([upload("control", "a", key="canny"), upload("control", "b", key="canny")], r"`control`\[canny\] is one file"),
        ([upload("lora", "a"), upload("lora", "b", key="x")], r"`lora`\[x\] is one file"),
    ],
)
def test_uploads_that_cannot_be_used_are_refused(folders: InputFolders, uploads: list[Upload], text: str) -> None:
    with pytest.raises(InputError, match=text):
        form(folders, *uploads)


def test_an_upload_that_is_too_large_is_refused(folders: InputFolders) -> None:
    with pytest.raises(ApiError, match="'a.png' has more than the 1,000 bytes allowed") as refused:
        form(folders, upload("image", "a.png", content=b"x" * 1001))
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("reference", "command", "model"),
    [("more/fish.png", "animate", "pocket-animate"), ("data:video/mp4;base64,AAAA", "edit", "pocket-edit")],
)
def test_a_reference_is_an_image_or_a_video(folders: InputFolders, reference: str, command: str, model: str) -> None:
    request = build(folders, input_reference={"image_url": reference})
    assert (request.command, request.model) == (command, model)
    assert Path(request.options["image" if command == "animate" else "video"]).is_file()


def test_the_type_of_a_reference_without_an_ending_is_that_of_the_form(folders: InputFolders) -> None:
    assert form(folders, upload("input_reference", "upload", kind="video/mp4")).command == "edit"


def test_data_urls_hold_files(folders: InputFolders) -> None:
    url = f"data:image/png;base64,{base64.b64encode(b'content').decode()}"
    assert Path(build(folders, image=url).options["image"]).read_bytes() == b"content"


def test_texts_of_a_form_are_values(folders: InputFolders) -> None:
    request = form(
        folders, num_frames="8", guidance_scale="7", vae_tiling="true", refine_at=["0.9", "0.5"], then="more",
        prompt_at='{"3": "a"}', seed="", chunk_size="auto", negative_prompt="",
    )  # fmt: skip
    assert dict(request.options) == {
        "prompt": "a fish", "num_frames": 8, "guidance_scale": 7.0, "vae_tiling": True, "refine_at": [0.9, 0.5],
        "then": ["more"], "prompt_at": {"3": "a"}, "chunk_size": "auto", "negative_prompt": "",
    }  # fmt: skip
    for text in ("inf", "1e999", "seven"):
        with pytest.raises(InputError, match="`guidance_scale` is a number"):
            form(folders, guidance_scale=text)


def test_models_of_the_operator_have_names_and_defaults(folders: InputFolders) -> None:
    facts = ModelFacts("/models/own", "", 512, 768, 8, 16, 8.0, ("generate", "edit"))
    fields = Fields.of(read_declaration().__class__(FIELDS.declaration.options, {"own": facts}, {}))
    request = build_request(fields, Body({"prompt": "a"}, (), is_form=False), folders)
    assert (request.model, request.metadata["model"], request.metadata["width"]) == ("/models/own", "own", 512)
    with pytest.raises(InputError, match="no model here can animate: the models are own"):
        build_request(fields, Body({"prompt": "a", "image": "more/fish.png"}, (), is_form=False), folders)


def test_messages_and_settings_have_the_clients_names_of_files(folders: InputFolders, tmp_path: Path) -> None:
    queue = JobQueue.open(tmp_path / "service")
    request = form(folders, upload("image", "../fish.png"), lora=["more/fish.png", "more"], adapter="pocket-fox")
    job = queue.submit("ann", request)
    image, (inner, outer) = job.options["image"], job.options["lora"]
    assert with_names({f"{image} is damaged": [inner, outer, 3]}, job) == {
        "../fish.png is damaged": ["more/fish.png", "more", 3]
    }
    assert with_names("pocket-animate", job) == "pocket-animate"
