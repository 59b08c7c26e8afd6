"""The task `templates`: which templates jobs can name."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from worker.answer import Answer, AnswerPart
from worker.service.parts import Worker
from worker.service.task import Job, Task


class TemplateLora(AnswerPart):
    """A template's LoRA."""

    name: str = Field(description="Its name.")
    scale: float = Field(description="Its weight.")
    te: float | None = Field(description="Its weight in the text encoder; null: `scale`.")
    unet: float | None = Field(description="Its weight in the UNet; null: `scale`.")


class ListedTemplate(AnswerPart):
    """One template; of its models only the names, because a URL may be signed."""

    template: str = Field(description="Its name in jobs.")
    name: str = Field(description="Its display name.")
    description: str = Field(description="What it is good for.")
    default: bool = Field(description="Whether it is the default template.")
    checkpoint: str = Field(description="Name of its checkpoint.")
    loras: list[TemplateLora] = Field(description="Its LoRAs.")
    defaults: dict[str, Any] = Field(description="Values for other fields of a job.")
    baked: bool = Field(description="Whether all of its models are in the image.")
    merged: bool = Field(description="Whether the image has its LoRAs merged into its checkpoint.")


class TemplateList(Answer):
    """The answer of the task `templates`."""

    templates: list[ListedTemplate] = Field(description="The templates of this worker.")
    default_template: str | None = Field(description="Name of the default template, if any.")
    timings: dict[str, float] = Field(description="Seconds: `total`.")


async def run(worker: Worker, job: Job, _checked: object) -> TemplateList:
    """The templates, and which of them are in the image."""
    states = {
        name: await worker.threads.run(job.stopwatch, worker.models.template_state, one.request())
        for name, one in worker.templates.get_templates().items()
    }
    return TemplateList.model_construct(
        templates=[
            ListedTemplate.model_construct(**(one | states[one["template"]]))
            for one in worker.templates.list_templates()
            if one["template"] in states  # the file may have changed in between
        ],
        default_template=worker.templates.get_default_template(),
        timings=job.stopwatch.timings(),
    )


TASK = Task(
    name="templates",
    description="Lists the templates that jobs can name.",
    run=run,
    output=TemplateList,
    is_quick=True,
)
