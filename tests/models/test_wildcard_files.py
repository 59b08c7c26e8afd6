"""The text files of wildcards in the model stores."""

import pytest

from worker.errors import InvalidInput
from worker.job.txt2img import parse
from worker.models.wildcard_files import (
    LARGEST_FILE,
    MOST_CHARACTERS,
    MOST_FILES,
    MOST_SEEDS,
    WildcardFiles,
)

WRITTEN = {
    "own/wildcards/colors.txt": "red",
    "own/wildcards/colors-cold.TXT": "\ufeffblue\r\n\r\n",
    "own/wildcards/art/dutch/old.txt": "Vermeer",
    "own/wildcards/art/hair color.txt": "brown",
    "own/wildcards/.hidden.txt": "hidden",
    "own/wildcards/notes.md": "notes",
    "own/secret.txt": "secret",
    "baked/wildcards/colors.txt": "baked",
    "baked/wildcards/only/Baked.txt": "baked",
    "own/wildcards/bad/utf16.txt": "red".encode("utf-16"),
    "own/wildcards/bad/latin.txt": "caf\xe9".encode("latin-1"),
    "own/wildcards/bad/nul.txt": "a\0b",
    "own/wildcards/bad/empty.txt": "# nothing\n\n",
    "own/wildcards/bad/large.txt": "a" * (LARGEST_FILE + 1),
}


@pytest.fixture
def files(tmp_path):
    for name, content in WRITTEN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    bad = tmp_path / "own/wildcards/bad"
    (bad / "outside.txt").symlink_to(tmp_path / "own/secret.txt")
    (bad / "circle.txt").symlink_to(bad / "circle.txt")
    (bad / "inside.txt").symlink_to("../colors.txt")
    return WildcardFiles(tmp_path / "own", tmp_path / "baked", tmp_path / "missing")


def resolved(files, prompt, seed=0, **more):
    job = {"prompt": prompt, "seed": seed, "wildcards": True, **more}
    return files.resolve(parse(job))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("colors", {"red"}),  # the writable store comes first
        ("Colors-COLD", {"blue"}),
        ("art/dutch/old", {"Vermeer"}),
        ("art\\dutch\\old", {"Vermeer"}),
        ("art/hair color", {"brown"}),
        ("only/baked", {"baked"}),
        ("bad/inside", {"red"}),
        ("COLORS*", {"red", "blue"}),
        ("art/*", {"brown", "Vermeer"}),
        ("art/**/o?d", {"Vermeer"}),
    ],
)
def test_a_name_or_a_pattern_finds_files_of_the_stores(files, name, words):
    assert {resolved(files, f"__{name}__", seed).prompt for seed in range(30)} == words


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colrs", "Did you mean __colors__"),
        ("old", "Did you mean __art/dutch/old__?"),
        ("zzzz", "has 13 wildcards, such as __art/dutch/old__"),
        ("zzzz*", "'__zzzz*__' is not known"),
        (".hidden", "not known"),
        ("notes", "not known"),
        ("../secret", "not known"),
        ("/etc/hostname", "not known"),
        ("bad/utf16", "'wildcards/bad/utf16.txt' is not a text in UTF-8"),
        ("bad/latin", "is not a text in UTF-8"),
        ("bad/nul", "is not a text in UTF-8"),
        ("bad/empty", "has no line with words"),
        ("bad/large", "cannot be read: unexpectedly large. It must be a file of at most 1 MiB."),
        ("bad/outside", "is a link that leads out of the folder 'wildcards'"),
        ("bad/circle", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(files, name, message):
    with pytest.raises(InvalidInput) as raised:
        resolved(files, f"__{name}__")
    assert message in str(raised.value)
    assert "secret" not in str(raised.value).replace("../secret", "")


def test_without_any_file_the_error_names_the_folder(tmp_path):
    with pytest.raises(InvalidInput, match=r"of the model store has no \.txt file"):
        resolved(WildcardFiles(tmp_path), "__colors__")


def test_a_job_reads_a_bounded_number_of_files_and_characters(files, tmp_path):
    for number in range(MOST_FILES + 1):
        (tmp_path / f"own/wildcards/n{number}.txt").write_text("a")
    for number in range(MOST_CHARACTERS // LARGEST_FILE + 1):
        (tmp_path / f"own/wildcards/large{number}.txt").write_text("a" * LARGEST_FILE)
    for pattern in ("n", "large"):
        with pytest.raises(InvalidInput, match=f"more than {MOST_FILES} files"):
            resolved(files, f"__{pattern}*__")


def test_a_file_that_is_added_or_changed_is_used_by_the_next_job(files, tmp_path):
    (tmp_path / "own/wildcards/new.txt").write_text("first")
    assert resolved(files, "__new__").prompt == "first"
    (tmp_path / "own/wildcards/new.txt").write_text("second")
    assert resolved(files, "__new__").prompt == "second"


def test_all_prompts_are_resolved_and_a_job_without_a_seed_gets_one(files):
    high = {"enable_hr": True, "denoising_strength": 0.5, "hr_upscaler": "Latent"}
    prompts = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")
    asked = dict.fromkeys(prompts, "__COLORS__") | high
    request = resolved(files, seed=-1, **asked)
    assert dict(request.resolved) == dict.fromkeys(prompts, "red")
    assert request.model_dump(include=set(prompts)) == request.resolved
    assert 0 <= request.seed < MOST_SEEDS
    assert request.seed != resolved(files, seed=-1, **asked).seed
    again = resolved(files, "{a|b|c|d|e|f}", -1)
    assert resolved(files, "{a|b|c|d|e|f}", again.seed).prompt == again.prompt
    assert again.resolved == {"prompt": again.prompt, "negative_prompt": ""}


def test_a_job_that_does_not_ask_for_wildcards_is_not_changed(files):
    request = parse({"prompt": "{a|b} __colors__"})
    assert files.resolve(request) is request
    assert (request.seed, request.resolved) == (-1, None)
