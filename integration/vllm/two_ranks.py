"""Answers prompts with two tensor parallel ranks; run by test_parallel.py."""

import json
import sys

import engines


def main() -> None:
    job = json.loads(sys.argv[1])
    engine = engines.start(job["model"], hf_overrides={"ptprune": job["setting"]}, tensor_parallel_size=2)
    prompts = [{"prompt": text, "multi_modal_data": {"image": getattr(engines, name)}} for text, name in job["prompts"]]
    outputs = engine.generate(prompts, engines.greedy(), use_tqdm=False)
    answers = [[list(output.prompt_token_ids), list(output.outputs[0].token_ids)] for output in outputs]
    with open(job["result"], "w", encoding="utf-8") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main()
