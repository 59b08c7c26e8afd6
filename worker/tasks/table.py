"""The table of tasks: which a job can name, and in which order the documents list them."""

from __future__ import annotations

from worker.service.parts import Worker
from worker.service.task import Tasks
from worker.tasks import (
    batch,
    health,
    interrogate,
    openai_images,
    pictures,
    png_info,
    prefetch,
    schema,
    templates,
    upscale,
)
from worker.tasks.lists import LISTS

TASKS: Tasks[Worker] = Tasks(
    pictures.TXT2IMG,
    pictures.IMG2IMG,
    upscale.TASK,
    interrogate.TASK,
    png_info.TASK,
    batch.TASK,
    prefetch.TASK,
    openai_images.TASK,
    *LISTS,
    templates.TASK,
    schema.TASK,
    health.TASK,
)
