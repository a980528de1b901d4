"""What a web server may do: FastAPI runs every ``def`` endpoint in a thread, as this recipe does.

Safe: one pruner, attached once when the server starts; calls go through the model one at a time, and every request
gets its own report. Refused: changing the pruner, or attaching another one, while it is attached.
A ratio of its own for every request: attach inside a lock, as ``answer_at`` does.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from ptprune import PyramidTokenPruning, load
from ptprune.errors import AttachError

PICTURE = str(Path(__file__).parents[1] / "scene.png")

model, processor = load()
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def generate(question):
    content = [{"type": "image", "url": PICTURE}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options).to(model.device)
    output = model.generate(**inputs, max_new_tokens=8)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


pruner = PyramidTokenPruning(keep_ratio=0.5)


def answer(question):  # @app.post("/answer")
    with pruner.reports() as reports:  # this request's own
        text = generate(question)
    return {"answer": text, "visual_tokens": reports[0].visual_tokens}


questions = ["which digit is blue?", "which letter is white?", "how many digits are there?"] * 2
pruner.attach(model)  # at startup
with ThreadPoolExecutor(3) as threads:
    answers = list(threads.map(answer, questions))
for question, found in zip(questions, answers, strict=True):
    print(question, found)

refused = []
for attempt in (lambda: setattr(pruner, "keep_ratio", 0.25), lambda: PyramidTokenPruning().attach(model)):
    try:
        attempt()
    except AttachError as error:
        refused.append(str(error))
print(*refused, sep="\n")
pruner.detach()  # at shutdown

one_at_a_time = Lock()


def answer_at(question, keep_ratio):
    own = PyramidTokenPruning(keep_ratio=keep_ratio)
    with one_at_a_time, own(model):
        text = generate(question)
    return {"answer": text, "visual_tokens": own.report.visual_tokens}


with ThreadPoolExecutor(3) as threads:
    at_ratios = list(threads.map(answer_at, questions[:3], [0.5, 0.25, 1.0]))
print(*at_ratios, sep="\n")
