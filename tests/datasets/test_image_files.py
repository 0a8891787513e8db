"""Images of every kind are read as a viewer shows them."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.base import SegmentationDataset
from datasets.image_files import image_size, pixel_limit, read_image, to_rgb
from datasets.loader import worker_faults_explained
from tests.conftest import save_mask
from utils.common.errors import UserError

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
    photo = read_image(save(tmp_path / name, image))
    assert photo.shape == (3, 48, 64) and photo.dtype == torch.uint8
    assert close(photo, 8, 20, RED, 12) and close(photo, 56, 20, GREEN, 12)


def save_turned(folder, suffix, orientation, size):
    """A green image (width, height) whose stored upper left corner is red, and an EXIF tag."""
    image = Image.new("RGB", size, GREEN)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / "JPEGImages" / f"a.{suffix}"
    path.parent.mkdir(exist_ok=True)
    return save(path, image, exif=exif)


def test_unreadable_files_say_why(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    cut = {
        suffix: save(tmp_path / f"whole.{suffix}", noise).read_bytes()[:1500]
        for suffix in ("jpg", "png")
    }
    cases = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"hello", "not an image that Pillow reads"),
        "cut.jpg": (cut["jpg"], "cannot be read"),
        "cut.png": (cut["png"], "cannot be read"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^{tmp_path / name}: {message}.*leave it out$"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match=rf"^{tmp_path}/nowhere.png: .*No such file"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.filterwarnings("error")
def test_pixel_limit_is_exact_and_given_back(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (100, 20)))
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(1999), pytest.raises(UserError, match="--max_pixels"):
        read_image(path)
    with pixel_limit(2000):
        assert read_image(path).shape == (3, 20, 100)
    assert before == Image.MAX_IMAGE_PIXELS


def palette_image():
    """A transparent pixel, and a dark one."""
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 10, 10, 10])
    image.putpixel((0, 0), 0)
    return image


GREY = Image.fromarray(np.uint8([[0, 0, 255, 255]]))


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("a.png", GREY, {}, [0, 0, 255, 255]),
        ("a.png", GREY.convert("1"), {}, [0, 0, 255, 255]),
        ("a.png", GREY.convert("LA"), {}, [0, 0, 255, 255]),
        # 16 bits, also stored as 32, are scaled and clipped; floats are shares, or bytes
        ("a.png", Image.fromarray(np.uint16([[0, 257, 25700, 65535]])), {}, [0, 1, 100, 255]),
        ("a.tif", Image.fromarray(np.uint16([[0, 257, 25700, 65535]])), {}, [0, 1, 100, 255]),
        ("a.tif", Image.fromarray(np.int32([[-1, 0, 65535, 70000, 257]])), {}, [0, 0, 255, 255, 1]),
        ("a.tif", Image.fromarray(np.float32([[0.0, 0.2, 1.0]])), {}, [0, 51, 255]),
        ("a.tif", Image.fromarray(np.float32([[-5.0, 100.2, 300.0]])), {}, [0, 100, 255]),
        ("a.png", Image.fromarray(np.uint8([[[9, 9, 9, 0], [7, 7, 7, 255]]])), {}, [255, 7]),
        ("a.png", Image.fromarray(np.uint8([[[9, 0], [8, 255]]]), "LA"), {}, [255, 8]),
        ("a.png", palette_image(), {"transparency": 0}, [255, 10]),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_grey_deep_and_transparent_pixels_are_bytes_in_three_channels(
    tmp_path, name, image, options, expected
):
    photo = read_image(save(tmp_path / name, image, **options))
    assert photo.tolist() == [[expected]] * 3 and photo.dtype == torch.uint8


def test_premultiplied_grey_lies_on_white_too():
    image = Image.frombytes("La", (2, 1), bytes([0, 0, 8, 255]))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 8]


# An image and its mask.


def one_pair(folder, mask_size):
    """A data set of one image, which is there, and a mask of a size (height, width)."""
    save_mask(folder / "SegmentationClass" / "a.png", np.zeros(mask_size))
    return SegmentationDataset(folder, ["a"], ["background", "cat"])


@pytest.mark.parametrize(("orientation", "size"), [(3, (64, 32)), (6, (64, 64))])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_stored_pixels_that_fit_the_mask_are_kept_and_it_is_said_once(
    tmp_path, capsys, orientation, size, suffix
):
    path = save_turned(tmp_path, suffix, orientation, size)
    image, _ = one_pair(tmp_path, size[::-1])[0]
    assert close(image, 4, 4, RED, 40) and close(image, size[0] - 4, size[1] - 4, GREEN, 40)
    corner = (size[0] - 4, 4) if orientation == 6 else (size[0] - 4, size[1] - 4)
    assert close(read_image(path), *corner, RED, 40)  # without a mask it is turned
    one_pair(tmp_path, size[::-1])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"note: {path}: EXIF") and "1 such" in said[0]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_image_is_turned_where_only_its_turned_size_fits_the_mask(tmp_path, capsys, suffix):
    save_turned(tmp_path, suffix, 6, (64, 32))
    image, target = one_pair(tmp_path, (64, 32))[0]
    assert image.shape[1:] == target.shape == (64, 32)
    assert close(image, 28, 4, RED, 40) and close(image, 4, 4, GREEN, 40)
    assert "EXIF" not in capsys.readouterr().err


def test_tags_behind_the_pixels_of_a_png_turn_it_too(tmp_path):
    path = save_turned(tmp_path, "png", 6, (64, 32))
    file = path.read_bytes()
    start = file.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(file[start : start + 4], "big")
    path.write_bytes(file[:start] + file[end:-12] + file[start:end] + file[-12:])
    assert one_pair(tmp_path, (64, 32))[0][0].shape == (3, 64, 32)


def test_sizes_are_compared_from_headers(tmp_path):
    path = save_turned(tmp_path, "jpg", 6, (20, 30))  # 30 wide and 20 high for a viewer
    path.write_bytes(path.read_bytes()[:-20])  # the pixels are not looked at
    assert one_pair(tmp_path, (20, 30)).image_sizes() == [(20, 30)]
    with pytest.raises(UserError, match=rf"a\.png: the mask is 21x20, .* {path} is 20x30: they"):
        one_pair(tmp_path, (20, 21))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"^{path}: the file is empty"):
        one_pair(tmp_path, (20, 30))


@pytest.mark.parametrize(("suffix", "orientation"), [("jpg", 3), ("png", 1), ("tif", 6)])
def test_mask_of_sides_that_no_tag_exchanges_is_refused(tmp_path, suffix, orientation):
    path = save_turned(tmp_path, suffix, orientation, (20, 30))  # Pillow turns a TIFF itself
    size = image_size(path)
    with pytest.raises(UserError, match=rf"a\.png: the mask .* {path} is {size[1]}x{size[0]}: "):
        one_pair(tmp_path, size[::-1])


def test_image_that_no_longer_fits_its_mask_is_named(tmp_path):
    path = save_turned(tmp_path, "png", 1, (20, 30))
    dataset = one_pair(tmp_path, (30, 20))
    save(path, two_colours((20, 31)))
    with pytest.raises(UserError, match=rf"a\.png: the mask is 20x30, .* {path} is 20x31"):
        dataset[0]


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, bit_depth, colour_type, *others):
    """A PNG of one row, by the specification: IHDR, other chunks, IDAT, IEND."""
    bits = "".join(format(value, f"0{bit_depth}b") for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = struct.pack(">IIBBBBB", len(values), 1, bit_depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *others, chunk(b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


BROKEN_CHUNKS = {
    "profile not compressed": chunk(b"iCCP", b"x\0\0garbage"),
    "EXIF of garbage": chunk(b"eXIf", b"garbage"),
    "EXIF in hexadecimals": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzzzz"),
}


@pytest.mark.parametrize("broken", BROKEN_CHUNKS)
def test_png_with_broken_tags_is_read(tmp_path, broken):
    (tmp_path / "a.png").write_bytes(png([3, 200, 77], 8, 0, BROKEN_CHUNKS[broken]))
    assert read_image(tmp_path / "a.png")[0].tolist() == [[3, 200, 77]]


def segment(data):
    """A segment of a JPEG that holds EXIF."""
    return b"\xff\xe1" + struct.pack(">H", len(data) + 8) + b"Exif\0\0" + data


UNREADABLE_IFD = b"II*\0\x08\0\0\0\x01\0\x69\x87\4\0\1\0\0\0\xff\xff\xff\xff\0\0\0\0"
BROKEN_EXIF = {
    "garbage": b"garbage garbage",
    "leads nowhere": UNREADABLE_IFD,
    "orientation of text": b"II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0\0\0\0\0",
    "orientation 9": b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("broken", BROKEN_EXIF)
def test_jpeg_with_broken_exif_is_read(tmp_path, broken):
    (tmp_path / "JPEGImages").mkdir()
    whole = save(tmp_path / "whole.jpg", two_colours((64, 48)))
    file, path = whole.read_bytes(), tmp_path / "JPEGImages" / "a.jpg"
    path.write_bytes(file[:2] + segment(BROKEN_EXIF[broken]) + file[2:])
    assert torch.equal(read_image(path), read_image(whole))
    assert torch.equal(one_pair(tmp_path, (48, 64))[0][0], read_image(whole))


def test_unreadable_image_in_a_worker_is_one_line(run, tmp_path):
    path = save_turned(tmp_path, "png", 1, (20, 30))
    dataset = one_pair(tmp_path, (30, 20))
    path.write_bytes(b"hello")

    def main(_):
        with worker_faults_explained():
            next(iter(DataLoader(dataset, num_workers=1)))

    assert run(main).error.startswith(f"error: {path}: not an image")
