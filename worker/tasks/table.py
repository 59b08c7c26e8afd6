"""The table of tasks: which a job can name, and in which order the documents list them."""

from __future__ import annotations

from worker.tasks import batch, health, pictures, templates
from worker.tasks.task import Tasks
from worker.tasks.worker import Worker

TASKS: Tasks[Worker] = Tasks(pictures.TXT2IMG, batch.TASK, templates.TASK, health.TASK)
