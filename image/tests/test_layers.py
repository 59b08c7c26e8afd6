"""What a machine downloads: several layers of similar size, and nothing twice."""

from containers import layers

LARGEST_LAYER = 2.0e9  # bytes, unpacked
LARGEST_IMAGE = {"a1111": 8.1e9, "embedded": 7.2e9}  # the first with its extensions, 88 MB
# Debian's lists of packages and users, which each installation writes or removes again.
SYSTEM = ("/etc/", "/var/")


def test_the_layers_are_small_and_no_file_is_in_two_of_them(each_image):
    target, image = each_image
    found = layers(image)
    for layer in found:
        print(f"{layer.size / 1e6:8.1f} MB {len(layer.files):6} files")
    print(f"{sum(layer.size for layer in found) / 1e6:8.1f} MB in {len(found)} layers of {target}")

    seen, twice = set(), set()
    for layer in found:
        twice |= seen & layer.files
        seen |= layer.files
    assert [path for path in sorted(twice) if not path.startswith(SYSTEM)] == []
    assert max(layer.size for layer in found) <= LARGEST_LAYER
    assert sum(layer.size for layer in found) <= LARGEST_IMAGE[target]
