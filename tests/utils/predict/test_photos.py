"""Photos of every kind are read as a viewer shows them; what is written reads back."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image_files import ImageError, pixel_limit, read_photo
from utils.common.errors import UserError
from utils.predict.photos import find_images, name_outputs

RED, GREEN = (220, 30, 20), (10, 200, 60)


def two_colours(size=(6, 4)):
    """Left half red, right half green."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 2, 0, *size))
    return image


def save(path, image, **options):
    image.save(path, **options)
    return path


def close(photo, x, y, colour, tolerance=3):
    return np.abs(photo[:, y, x].numpy().astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGB"),
        ("a.PNG", "P"),
        ("a.JPG", "RGB"),
        ("a.jpeg", "CMYK"),
        ("a.tif", "CMYK"),
        ("a.tif", "YCbCr"),
        ("a.bmp", "RGB"),
        ("a.gif", "P"),
        ("a.webp", "RGB"),
        ("a.ppm", "RGB"),
        ("a.png", "RGBA"),
    ],
)
def test_colours_survive_every_mode_and_format(tmp_path, name, mode):
    image = two_colours((64, 48))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    photo = read_photo(save(tmp_path / name, image))
    assert photo.shape == (3, 48, 64) and photo.dtype == torch.uint8
    assert close(photo, 8, 20, RED, 12) and close(photo, 56, 20, GREEN, 12)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_have_three_equal_channels(tmp_path, mode):
    image = Image.new("L", (4, 3))
    image.paste(255, (2, 0, 4, 3))
    photo = read_photo(save(tmp_path / "a.png", image.convert(mode)))
    expected = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).expand(3, 3, 4)
    assert torch.equal(photo, expected)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    photo = read_photo(save(tmp_path / name, Image.fromarray(values)))
    assert photo[0].tolist() == [[0, 1, 100, 255]]
    assert torch.equal(photo[0], photo[2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.2, 1.0], [0, 51, 255]), ([-5.0, 100.2, 300.0], [0, 100, 255])],
)
def test_float_grey_is_taken_as_unit_or_byte_range(tmp_path, values, expected):
    photo = read_photo(save(tmp_path / "a.tif", Image.fromarray(np.array([values], np.float32))))
    assert photo[1].tolist() == [expected]


def test_32_bit_grey_is_taken_as_16_bit_range(tmp_path):
    values = np.array([[-1, 0, 65535, 70000]], np.int32)
    photo = read_photo(save(tmp_path / "a.tif", Image.fromarray(values)))
    assert photo[0].tolist() == [[0, 0, 255, 255]]


def test_transparent_parts_are_white(tmp_path):
    image = two_colours().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 3, 4))
    photo = read_photo(save(tmp_path / "a.png", image))
    assert close(photo, 0, 0, (255, 255, 255), 0) and close(photo, 5, 0, GREEN, 0)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, *GREEN])
    palette.putpixel((0, 0), 0)
    photo = read_photo(save(tmp_path / "p.png", palette, transparency=0))
    assert close(photo, 0, 0, (255, 255, 255), 0) and close(photo, 1, 1, GREEN, 0)


# For each EXIF orientation: where the stored image's upper left pixel is seen, (right?, bottom?).
CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize("orientation", CORNERS)
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.new("RGB", (64, 32), GREEN)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_photo(save(tmp_path / "a.jpg", image, exif=exif, quality=95))
    height, width = (32, 64) if orientation < 5 else (64, 32)
    assert photo.shape == (3, height, width)
    corners = {
        (right, bottom): close(photo, [4, width - 4][right], [4, height - 4][bottom], RED, 25)
        for right in (0, 1)
        for bottom in (0, 1)
    }
    assert [corner for corner, is_red in corners.items() if is_red] == [CORNERS[orientation]]


def test_one_pixel_is_an_image(tmp_path):
    assert read_photo(save(tmp_path / "a.png", Image.new("RGB", (1, 1), RED))).shape == (3, 1, 1)


def test_unreadable_files_say_why(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole = {
        suffix: save(tmp_path / f"whole.{suffix}", noise).read_bytes() for suffix in ("jpg", "png")
    }
    cases = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"hello", "not an image"),
        "cut.jpg": (whole["jpg"][:1500], "cannot be read"),
        "cut.png": (whole["png"][:1500], "cannot be read"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=message):
            read_photo(tmp_path / name)
    with pytest.raises(ImageError, match="No such file"):
        read_photo(tmp_path / "nowhere.png")


@pytest.mark.filterwarnings("error")
def test_pixel_limit_is_exact_and_given_back(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (100, 20)))
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(1999), pytest.raises(ImageError, match="--max_pixels"):
        read_photo(path)
    with pixel_limit(2000):
        assert read_photo(path).shape == (3, 20, 100)
    assert before == Image.MAX_IMAGE_PIXELS


def test_folder_gives_its_images_whatever_the_case_of_the_suffix(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deeper.png").mkdir(parents=True)
    for name in ("b.JPG", "a.Png", "c.tiff", "._c.jpg", "notes.txt", "video.mpg", "drawing.eps"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "no_suffix").write_bytes(b"x")
    found = find_images([tmp_path / "no_suffix", folder, folder / "b.JPG"])
    assert [path.name for path in found] == ["no_suffix", "a.Png", "b.JPG", "c.tiff"]


def test_missing_paths_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jpg: no such file or folder"):
        find_images([tmp_path / "nowhere.jpg"])
    with pytest.raises(UserError, match=rf"{tmp_path}: no image in this folder"):
        find_images([tmp_path])


def test_outputs_overwrite_neither_each_other_nor_an_input(tmp_path):
    other = tmp_path / "other"
    paths = [other / "x.jpg", tmp_path / "x.bmp", other / "X.gif", other / "x_overlay.png"]
    assert name_outputs(paths, tmp_path / "out") == ["x", "x_2", "X_3", "x_overlay_2"]
    paths = [tmp_path / "x.png", tmp_path / "y.jpg", tmp_path / "y_overlay.png"]
    assert name_outputs(paths, tmp_path) == ["x_2", "y_2", "y_overlay_2"]


def test_input_behind_a_link_is_not_overwritten(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert name_outputs([tmp_path / "link" / "x.png"], tmp_path) == ["x_2"]


def test_pictures_that_are_not_read_are_counted_and_said(tmp_path, capsys):
    for name in ("a.png", "b.HEIC", "c.heic", "d.svg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "e.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    said = capsys.readouterr().err
    assert said == f"{tmp_path}: leaves out 2 x .heic, 1 x .svg, 1 x broken link\n"


def test_folder_of_readable_pictures_alone_says_nothing(tmp_path, capsys):
    for name in ("a.png", "a_overlay.png", "notes.txt", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"x")
    assert len(find_images([tmp_path])) == 2
    assert len(find_images([tmp_path], tmp_path / "elsewhere")) == 2
    assert capsys.readouterr().err == ""


def test_results_in_the_output_folder_are_no_inputs(tmp_path, capsys):
    names = ["a.jpg", "a.png", "a_overlay.png", "b.png", "b_2.png", "b_2_overlay.png"]
    for name in [*names, "c_overlay.png"]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for folder in (tmp_path, tmp_path / "link"):
        found = find_images([folder], tmp_path)
        assert [path.name for path in found] == ["a.jpg", "b.png", "c_overlay.png"]
        assert "leaves out 4 x result of an earlier run" in capsys.readouterr().err
    assert tmp_path / "a.png" in find_images([tmp_path / "a.png"], tmp_path)  # named by itself
