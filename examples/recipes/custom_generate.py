"""Pruning by one argument of generate(), and a decoding loop of your own under a pruner.

transformers runs the ``custom_generate/generate.py`` of a repository on the Hub, or of a folder as here. A function
that is given as ``custom_generate`` is called when the pictures are encoded: attach around generate(), not inside.
"""

from pathlib import Path

import torch

from ptprune import PyramidTokenPruning, load
from ptprune.errors import Refused

HERE = Path(__file__).parent
PICTURE = str(HERE.parent / "scene.png")

model, processor = load()
content = [{"type": "image", "url": PICTURE}, {"type": "text", "text": "which digit is blue?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
options = {**inputs, "max_new_tokens": 8, "do_sample": False}

# as a folder, or a repository on the Hub
folder = model.generate(**options, custom_generate=str(HERE / "hub"), trust_remote_code=True, keep_ratio=0.5)


# as a function
def greedy(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """The plainest loop: the likeliest token, until a criterion says stop."""
    new = input_ids.shape[1]
    for step in range(generation_config.max_length - input_ids.shape[1]):
        given = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=new, is_first_iteration=step == 0, **kwargs
        )
        output = model(**given, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        token = logits_processor(input_ids, output.logits[:, -1]).argmax(-1, keepdim=True)
        input_ids, new = torch.cat([input_ids, token], dim=1), 1
        if stopping_criteria(input_ids, None).all():
            break
    return input_ids


pruner = PyramidTokenPruning(keep_ratio=0.5)
with pruner(model):
    function = model.generate(**options, custom_generate=greedy)
report = pruner.report


# attached inside, where it is too late
def late(model, input_ids, **kwargs):
    with pruner(model):
        return greedy(model, input_ids, **kwargs)


refused = None
try:
    model.generate(**options, custom_generate=late)
except Refused as error:
    refused = str(error)

for output in (folder, function):
    print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
print(report)
print(refused)
