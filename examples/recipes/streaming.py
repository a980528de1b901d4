"""Tokens as they are written, with a TextIteratorStreamer."""

from pathlib import Path
from threading import Thread

from transformers import TextIteratorStreamer

from ptprune import PyramidTokenPruning, load

PICTURE = str(Path(__file__).parents[1] / "scene.png")

model, processor = load()
content = [{"type": "image", "url": PICTURE}, {"type": "text", "text": "which digit is blue?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)

pruner = PyramidTokenPruning(keep_ratio=0.5)
streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
pieces = []
with pruner(model):
    call = Thread(target=model.generate, kwargs={**inputs, "max_new_tokens": 8, "streamer": streamer})
    call.start()
    for piece in streamer:  # inside the block: it ends only when the call has ended
        print(piece, end="", flush=True)
        pieces.append(piece)
call.join()
print()
print(pruner.report)
