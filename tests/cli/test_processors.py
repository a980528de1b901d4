"""A processor, saved and loaded again without torchvision, gives the same inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    InternVLProcessor,
    LlavaNextProcessor,
    ProcessorMixin,
    Qwen2VLProcessor,
    SmolVLMProcessor,
)
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available

from ptprune.checkpoints import processor as loading
from ptprune.checkpoints.cohere2_vision import Cohere2VisionImageProcessorPil, tile_grid
from ptprune.checkpoints.image_only import NoVideo, image_only
from ptprune.checkpoints.processor import find_class, load_processor
from tests.cli.families import savable
from tests.zoo import ZOO, Specimen
from tests.zoo.cohere import least_upscaling
from tests.zoo.pictures import picture

plain = pytest.mark.skipif(is_torchvision_available(), reason="torchvision rounds pixels otherwise than Pillow")


@pytest.fixture(params=list(ZOO))
def specimen(request: pytest.FixtureRequest) -> Specimen:
    return ZOO[request.param]


def load(directory: Path) -> Any:
    """As without num2words, which SmolVLM wants for videos; the zoo puts something in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", None)
        processor = load_processor(directory)
        assert processing_smolvlm.num2words is None
    return processor


def inputs_of(processor: Any, specimen: Specimen) -> dict[str, torch.Tensor]:
    return processor(
        images=[[picture(90, 60), picture(36, 100)]],
        text=[f"look at {specimen.placeholder} and {specimen.placeholder} what is the red thing"],
        images_kwargs=specimen.image_options,
        return_tensors="pt",
    )


def check_same(one: Any, other: Any, specimen: Specimen) -> None:
    before, after = inputs_of(one, specimen), inputs_of(other, specimen)
    assert list(before) == list(after)
    for key in before:
        assert torch.equal(before[key], after[key]), key


@plain
def test_saved_and_loaded(specimen: Specimen, tmp_path: Path) -> None:
    processor = savable(specimen)
    processor.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    check_same(specimen.processor, loaded, specimen)
    assert loaded.chat_template == processor.chat_template
    assert (
        type(loaded).__name__
        == type(processor).__name__
        == specimen.build(layers=1).__class__.__name__.replace("ForConditionalGeneration", "Processor")
    )
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    check_same(loaded, load(again), specimen)


@plain
@pytest.mark.parametrize("fast", ["", "Fast"])
def test_files_of_before_they_were_joined(specimen: Specimen, fast: str, tmp_path: Path) -> None:
    """Older checkpoints: preprocessor_config.json for pictures, which names the processor's class."""
    processor = savable(specimen)
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    images = settings.pop("image_processor")
    if images["image_processor_type"] == "ByHand":  # the zoo's own
        images["image_processor_type"] = "Cohere2VisionImageProcessor"
    images = {**images, "image_processor_type": images["image_processor_type"] + fast}
    images["processor_class"] = settings.pop("processor_class")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    file.unlink()
    words = tmp_path / "tokenizer_config.json"  # would name it as well
    words.write_text(json.dumps({**json.loads(words.read_text()), "processor_class": None}))
    if settings:
        file.write_text(json.dumps(settings))
    check_same(specimen.processor, load(tmp_path), specimen)


@plain
def test_no_file_names_the_class(specimen: Specimen, tmp_path: Path) -> None:
    """The model's type is left, as it is for AutoProcessor; a class that nobody knows counts as none."""
    processor = savable(specimen)
    processor.save_pretrained(tmp_path)
    for number, name in enumerate(("processor_config.json", "tokenizer_config.json")):
        settings = json.loads((tmp_path / name).read_text())
        settings.pop("processor_class", None)
        if number:
            settings["processor_class"] = "NobodysProcessor"
        (tmp_path / name).write_text(json.dumps(settings))
    specimen.build(layers=1).config.save_pretrained(tmp_path)
    check_same(specimen.processor, load(tmp_path), specimen)


def test_nothing_names_a_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="'gpt2'"):
        find_class(tmp_path)


def test_a_class_without_video_stays_as_it_is() -> None:
    assert image_only(LlavaNextProcessor) is LlavaNextProcessor


@pytest.mark.parametrize("stock", [InternVLProcessor, Qwen2VLProcessor, SmolVLMProcessor])
def test_image_only_keeps_everything_else(stock: type[ProcessorMixin]) -> None:
    made = image_only(stock)
    assert made is image_only(stock)
    assert issubclass(made, stock)
    assert made.__name__ == stock.__name__
    assert made.__init__ is stock.__init__
    assert stock.get_attributes() == [*made.get_attributes(), "video_processor"]


def test_a_video_part_elsewhere_is_refused() -> None:
    class Odd(ProcessorMixin):
        def __init__(self, video_processor: Any = None, tokenizer: Any = None) -> None:
            super().__init__(video_processor, tokenizer)

    with pytest.raises(TypeError, match="Odd"):
        image_only(Odd)


@plain
def test_videos_are_refused(tmp_path: Path) -> None:
    savable(ZOO["qwen2-vl"]).save_pretrained(tmp_path)
    processor = load_processor(tmp_path)
    assert isinstance(processor.video_processor, NoVideo)
    with pytest.raises(ImportError, match="torchvision"):
        processor(text=["<|video_pad|>"], videos=[[picture(32, 32)] * 2], return_tensors="pt")


@pytest.mark.parametrize("most", [1, 2, 6, 12])
def test_cohere2_vision_tiles(most: int) -> None:
    for height in range(5, 400, 23):
        for width in range(5, 400, 17):
            assert tile_grid((height, width), (32, 32), most) == least_upscaling((height, width), (32, 32), 1, most)
    assert Cohere2VisionImageProcessorPil().size == {"height": 512, "width": 512}
    assert Cohere2VisionImageProcessorPil().patch_size == 16
    images = Cohere2VisionImageProcessorPil(size={"height": 32, "width": 32}, max_patches=most)
    for size in [(90, 40), (20, 20), (33, 200)]:
        made = images([picture(*size)], return_tensors="pt")
        assert len(made["pixel_values"]) == int(made["num_patches"][0])
        assert int(made["num_patches"][0]) == images.get_number_of_image_patches(size[1], size[0])
    assert images.get_number_of_image_patches(40, 90, {"crop_to_patches": False}) == 1


@pytest.mark.parametrize(
    ("name", "files", "auto"),
    [
        ("llava-next", {}, True),
        ("internvl", {}, False),
        ("internvl", {"video_preprocessor_config.json": {}}, True),
        ("internvl", {"preprocessor_config.json": {}}, True),
        ("internvl", {"processor_config.json": {"processor_class": "InternVLProcessor", "video_processor": {}}}, True),
    ],
)
def test_with_torchvision(
    name: str, files: dict[str, Any], auto: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class has its video part unless that was never saved."""
    savable(ZOO[name]).save_pretrained(tmp_path)
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    asked = []
    monkeypatch.setattr(loading, "is_torchvision_available", lambda: True)
    stock = find_class(tmp_path)

    def from_pretrained(cls: type[ProcessorMixin], directory: Path, **options: Any) -> None:
        assert options == {"local_files_only": True, "trust_remote_code": False}
        asked.append(cls)

    monkeypatch.setattr(ProcessorMixin, "from_pretrained", classmethod(from_pretrained))
    load_processor(tmp_path)
    assert asked == [stock if auto else image_only(stock)]
