"""GLUE from end to end: read the tasks' files, fine-tune, evaluate, predict, and write files for the GLUE site.

Examples
--------
>>> import mom
>>> rows = [{"sentence": "good " * n, "label": 1} for n in (1, 2)] + [{"sentence": "bad", "label": 0}]
>>> model = mom.MoM(mom.MoMConfig.preset("demo", n_positions=32, n_embd=32))
>>> model.tokenizer = mom.Tokenizer.train([row["sentence"] for row in rows], 300)
>>> result = mom.glue.finetune(
...     model, "sst2", {"train": rows, "dev": rows}, epochs=1, batch_size=2, progress=False
... )
>>> sorted(result.metrics)
['accuracy']
"""

from .finetuning import evaluate, finetune, predict
from .metrics import baseline_metrics, glue_metrics, task_score
from .reader import GlueData, read_glue
from .results import GlueResult, SeedResult, format_table
from .submission import write_submission
from .tasks import TASKS, GlueTask, find_task

__all__ = [
    "TASKS", "GlueData", "GlueResult", "GlueTask", "SeedResult", "baseline_metrics", "evaluate", "find_task",
    "finetune", "format_table", "glue_metrics", "predict", "read_glue", "task_score", "write_submission",
]  # fmt: skip
