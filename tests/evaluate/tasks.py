"""Small tasks of lm_eval that read a local file: a choice, a text to write, texts to find likely."""

from __future__ import annotations

import json
from pathlib import Path

from hlap_export import reference_model

NUM_DOCUMENTS = 10

HEAD = """dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
metadata:
  version: 3
"""
TASKS = {
    "local_choice": """output_type: multiple_choice
doc_to_text: "{{begin}}"
doc_to_choice: "{{[right, wrong]}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
""",
    "local_write": """output_type: generate_until
doc_to_text: "{{begin}}"
doc_to_target: "{{right}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: bleu
    aggregation: bleu
    higher_is_better: true
  - metric: ter
    aggregation: ter
    higher_is_better: false
""",
    "local_texts": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: byte_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
""",
}


def documents() -> list[dict[str, str]]:
    """Lines of code cut in two, the next line's end as a wrong answer, and the lines around them."""
    lines = [line.strip() for line in reference_model.evaluation_text().read_text().splitlines() if len(line) > 45]
    made: list[dict[str, str]] = []
    for index in range(NUM_DOCUMENTS):
        line, other = lines[7 * index], lines[7 * index + 1]
        cut = 12 + index
        text = "\n".join(lines[7 * index : 7 * index + 5])
        made.append({"begin": line[:cut], "right": line[cut:], "wrong": other[cut:], "text": text})
    return made


def write_tasks(folder: Path) -> Path:
    """Write the tasks and their data, and return the folder."""
    folder.mkdir(exist_ok=True)
    data = folder / "documents.jsonl"
    data.write_text("\n".join(json.dumps(document) for document in documents()))
    for name, body in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n" + HEAD.format(data=data) + body)
    return folder
