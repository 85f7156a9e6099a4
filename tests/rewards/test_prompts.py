"""Names of classes and prompts."""

import pytest

from jaxdrl.errors import UserError
from jaxdrl.rewards.preference import prompts


def test_imagenet_has_its_thousand_classes_in_order():
    names = prompts.class_names("imagenet", 1000)
    known = {
        0: "tench",
        1: "goldfish",
        134: "crane bird",
        207: "Golden Retriever",
        517: "construction crane",
        999: "toilet paper",
    }
    assert {index: names[index] for index in known} == known | {207: names[207]}
    assert names[207].lower() == "golden retriever"
    assert all(name.strip() == name and name.isascii() for name in names) and len(set(names)) == 998
    header = (prompts.Path(prompts.__file__).parents[2] / "assets/class_names/imagenet.txt").read_text().splitlines()[:3]
    assert all(line.startswith("# ") for line in header) and "MIT licence" in header[1]


def test_prompts_and_labels(tmp_path):
    names = prompts.class_names("digits", 10)
    assert prompts.prompts(names)[3] == "a photo of a three" and len(names) == 10
    assert prompts.prompts(("{x}",), "<{class}> {y}") == ("<{x}> {y}",)
    assert prompts.label("nine", names) == 9
    (tmp_path / "names.txt").write_text("# two\ncat\n\n dog \n")
    assert prompts.class_names(str(tmp_path / "names.txt")) == ("cat", "dog") == prompts.class_names(["cat", "dog"])


def test_mistakes_are_told():
    names = prompts.class_names("imagenet")
    with pytest.raises(UserError, match="'goldfsh' is unknown \\(did you mean 'goldfish'\\?\\)"):
        prompts.label("goldfsh", names)
    with pytest.raises(UserError, match="labels 836, 837; give the label"):
        prompts.label("sunglasses", names)
    with pytest.raises(UserError, match="there are 10, must be 1000, one a class"):
        prompts.class_names("digits", 1000)
    with pytest.raises(UserError, match="there are 1000, must be 10, one a class"):
        prompts.class_names("imagenet", 10)
    with pytest.raises(UserError, match="there are 0, must be at least one"):
        prompts.class_names([])
    with pytest.raises(UserError, match="'imagenet21k' are unknown: give imagenet, digits"):
        prompts.class_names("imagenet21k")
    with pytest.raises(UserError, match="has no \\{class\\}"):
        prompts.prompts(names, "a photo of a {}")


def test_chosen_classes_have_their_own_names(tmp_path):
    synsets = {"n02099601": 207, "n01440764": 0, "n02012849": 134, "n03126707": 517, "n15075141": 999}
    everything = prompts.class_names("imagenet")
    assert prompts.class_names("imagenet", 5, tuple(synsets)) == tuple(everything[label] for label in synsets.values())
    assert prompts.class_names("digits", chosen=("3", "0")) == ("three", "zero")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    for source in (str(tmp_path / "names.txt"), ("cat", "dog")):
        assert prompts.class_names(source, 2, ("n01440764", "n02012849")) == ("cat", "dog")
    with pytest.raises(UserError, match=r"class names 'imagenet' have none for 'cat' of config\.data\.classes"):
        prompts.class_names("imagenet", 1, ("cat",))
    known = prompts._read(prompts._shipped("imagenet_labels"))
    assert len(known) == 1000 and list(known) == sorted(set(known)) and all(len(name) == 9 for name in known)


@pytest.mark.parametrize(
    ("name", "chosen", "source"),
    [
        ("imagenet2012", (), "imagenet"),
        ("imagenet2012:5.1.0", (), "imagenet"),
        ("imagenet_resized/64x64", (), "imagenet_resized/64x64"),  # whose labels are in another order
        ("imagenet_resized/64x64", ("n01440764",), "imagenet"),
        ("digits", (), "digits"),
    ],
)
def test_the_shipped_names_are_taken_where_labels_are_in_their_order(name, chosen, source):
    assert prompts.usual_source(name, chosen) == source
    if source not in prompts.SHIPPED:
        with pytest.raises(UserError, match="imagenet_resized"):
            prompts.class_names(source)
