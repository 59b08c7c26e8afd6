"""The way of a job: from the program that a person uses to the picture."""

from __future__ import annotations

from docs.figures.svg import Drawing

# what people use -> the API that it speaks
PROGRAMS = (
    ("Open WebUI, SillyTavern, Krita", "/sdapi/v1"),
    ("programs made for OpenAI", "/v1/images"),
    ("a browser: the page", "/"),
    ("terminal, curl, runpod-python", "/run, /status"),
)
STEPS = (
    ("check", "the job"),
    ("download", "the models"),
    ("draw", "A1111 v1.9.3"),
    ("prove", "the right models"),
    ("deliver", "the picture"),
)


def draw() -> str:
    """Two rows: who reaches the worker on which way, and what the worker does."""
    drawing = Drawing(
        760,
        372,
        "The way of a job",
        "A program of yours (Open WebUI, SillyTavern, Krita, a program made for OpenAI, a browser, "
        "the terminal, curl or runpod-python) sends a job to the gateway. The gateway hands it to "
        "a worker in the same container on your computer or GPU, or to a RunPod endpoint that "
        "scales to zero. The worker checks the job, downloads the models, draws with A1111, proves "
        "that the right models were used, and delivers the picture.",
    )
    _programs(drawing)
    _gateway(drawing)
    _backs(drawing)
    _steps(drawing)
    return drawing.svg()


def _programs(drawing: Drawing) -> None:
    drawing.text(16, 28, "what you use", "faint small")
    for number, (program, api) in enumerate(PROGRAMS):
        top = 40 + 50 * number
        drawing.box(16, top, 246, 42)
        drawing.text(28, top + 18, program, "small strong")
        drawing.text(28, top + 34, api, "code faint")
        drawing.arrow((262, top + 21), (318, 134 + 7 * (number - 1.5)))


def _gateway(drawing: Drawing) -> None:
    drawing.text(320, 28, "one address", "faint small")
    drawing.box(320, 84, 136, 100, "blue")
    drawing.text(388, 124, "gateway", "strong middle")
    drawing.text(388, 146, "localhost:7860", "code middle")
    drawing.text(388, 164, "or :8000", "code middle")
    drawing.arrow((456, 122), (512, 84))
    drawing.arrow((456, 146), (512, 184))


def _backs(drawing: Drawing) -> None:
    drawing.text(514, 28, "where it is drawn", "faint small")
    drawing.box(514, 40, 230, 88, "green")
    drawing.text(528, 64, "your laptop or GPU", "strong")
    drawing.lines(528, 86, ("the worker in the same", "process or container"), "small", 17)
    drawing.box(514, 142, 230, 88, "violet")
    drawing.text(528, 166, "your RunPod endpoint", "strong")
    drawing.lines(528, 188, ("scales to zero; only the", "gateway has your key"), "small", 17)


def _steps(drawing: Drawing) -> None:
    drawing.rule((16, 252), (744, 252))
    drawing.text(16, 278, "what the worker does", "faint small")
    for number, (verb, noun) in enumerate(STEPS):
        left = 16 + 150 * number
        drawing.box(left, 292, 128, 62, "yellow" if verb == "prove" else "box")
        drawing.text(left + 64, 317, verb, "strong middle")
        drawing.text(left + 64, 338, noun, "small middle")
        if number:
            drawing.arrow((left - 21, 323), (left - 2, 323))
