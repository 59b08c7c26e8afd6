"""The npm clients stable-diffusion-api and node-sd-webui, as they are published."""

from fakes.node import run_script


def test_they_list_draw_and_get_the_sentence_of_an_error(url):
    found = run_script("a1111.mjs", url)
    assert found["samplers"] == 19
    assert found["models"][0] == "Red foxes"
    assert found["sizes"] == [[64, 64], [64, 64], [128, 128]]
    assert found["pictures"] == [1, 1]
    assert (found["lists"], found["flags"], found["options"]) == ([[], [], []], True, "png")
    (text, detail), (status, _) = found["errors"]
    assert "422" in text
    assert "sampler_name 'nope'" in detail
    assert status == "Unprocessable Entity"
