"""Int8 weights by torchao, 4-bit weights by bitsandbytes (on a GPU), each with pruning on top.

Quantise first, attach then: a model is not quantised while a pruner is attached.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from ptprune import PyramidTokenPruning, load
from ptprune.tiny import CHECKPOINT  # the small model that ships; any directory or Hub name does

PICTURE = str(Path(__file__).parents[1] / "scene.png")
content = [{"type": "image", "url": PICTURE}, {"type": "text", "text": "which digit is blue?"}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
answers, reports = {}, {}


def answer(name, model, processor):
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options).to(model.device)
    pruner = PyramidTokenPruning(keep_ratio=0.5)
    with pruner(model), torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=8)
    answers[name] = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    reports[name] = pruner.report
    print(f"{name}: {answers[name]}, {reports[name]}")


model, processor = load()
answer("as it is", model, processor)

if find_spec("torchao") is None:
    print("int8 skipped: torchao is not installed (pip install torchao)")
else:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())  # the linear layers, in place
    answer("int8", model, processor)

if find_spec("bitsandbytes") is None or not torch.cuda.is_available():
    print("4-bit skipped: needs a GPU and bitsandbytes")
else:
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, quantization_config=four, device_map="cuda").eval()
    answer("4-bit", model, processor)
