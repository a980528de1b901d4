"""transformers' pipeline with a pruner attached: one question, then several in a batch."""

from pathlib import Path

from transformers import pipeline

from ptprune import PyramidTokenPruning, load

PICTURE = str(Path(__file__).parents[1] / "scene.png")


def chat(question):
    return [{"role": "user", "content": [{"type": "image", "url": PICTURE}, {"type": "text", "text": question}]}]


model, processor = load()  # the small model that ships; give the name of another one
ask = pipeline("image-text-to-text", model=model, processor=processor)
options = {"max_new_tokens": 8, "return_full_text": False}

pruner = PyramidTokenPruning(keep_ratio=0.5)
pruner.attach(ask.model)  # until detach(): a pipeline needs no block
[single] = ask(text=chat("which digit is blue?"), **options)
print(single["generated_text"].strip())
print(pruner.report)

questions = ["which digit is blue?", "which letter is white?", "how many digits are there?"]
with pruner.reports() as reports:  # of all batches
    batch = ask(text=[chat(question) for question in questions], batch_size=2, **options)
for question, [answer] in zip(questions, batch, strict=True):
    print(question, answer["generated_text"].strip())
for report in reports:
    print(report)
pruner.detach()
