"""Images of every kind are read as a viewer shows them."""

import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.base import SegmentationDataset
from datasets.image_files import ImageError, image_size, pixel_limit, read_image
from datasets.loader import worker_faults_explained
from tests.conftest import save_mask

RED, GREEN = (220, 30, 20), (10, 200, 60)
writes_ycbcr = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="this Pillow cannot read its own YCbCr TIFF"
)


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
        pytest.param("a.tif", "YCbCr", marks=writes_ycbcr),
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


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_have_three_equal_channels(tmp_path, mode):
    image = Image.new("L", (4, 3))
    image.paste(255, (2, 0, 4, 3))
    photo = read_image(save(tmp_path / "a.png", image.convert(mode)))
    expected = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).expand(3, 3, 4)
    assert torch.equal(photo, expected)


# For each EXIF orientation: where the stored image's upper left pixel is seen, (right?, bottom?).
CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize("orientation", CORNERS)
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.new("RGB", (64, 32), GREEN)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_image(save(tmp_path / "a.jpg", image, exif=exif, quality=95))
    height, width = (32, 64) if orientation < 5 else (64, 32)
    assert photo.shape == (3, height, width)
    corners = {
        (right, bottom): close(photo, [4, width - 4][right], [4, height - 4][bottom], RED, 25)
        for right in (0, 1)
        for bottom in (0, 1)
    }
    assert [corner for corner, is_red in corners.items() if is_red] == [CORNERS[orientation]]


def three_floats():
    """A TIFF of one pixel in three floats, by the specification: entries of an IFD, then values."""
    entries = {
        256: (3, 1, 1), 257: (3, 1, 1), 258: (3, 3, 134), 259: (3, 1, 1), 262: (3, 1, 2),
        273: (4, 1, 146), 277: (3, 1, 3), 278: (3, 1, 1), 279: (4, 1, 12), 339: (3, 3, 140),
    }  # fmt: skip
    ifd = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in entries.items())
    values = struct.pack("<6H3f", 32, 32, 32, 3, 3, 3, 0.1, 0.5, 1.0)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + ifd + bytes(4) + values


def test_unreadable_files_say_why(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole = {
        suffix: save(tmp_path / f"whole.{suffix}", noise).read_bytes() for suffix in ("jpg", "png")
    }
    cases = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"hello", "not an image"),
        "deep.tif": (three_floats(), "a TIFF whose kind of pixels Pillow does not read: save it"),
        "cut.jpg": (whole["jpg"][:1500], "cannot be read"),
        "cut.png": (whole["png"][:1500], "cannot be read"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=rf"^{tmp_path / name}: {message}.*leave it out$"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match=rf"^{tmp_path}/nowhere.png: .*No such file"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.filterwarnings("error")
def test_pixel_limit_is_exact_and_given_back(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (100, 20)))
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(1999), pytest.raises(ImageError, match="--max_pixels"):
        read_image(path)
    with pixel_limit(2000):
        assert read_image(path).shape == (3, 20, 100)
    assert before == Image.MAX_IMAGE_PIXELS


def palette_image():
    """A transparent pixel, and a green one."""
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, *GREEN])
    image.putpixel((0, 0), 0)
    return image


def one_pair(folder, image_name, mask_size, **options):
    """A data set of one image, which is there, and a mask of a size (height, width)."""
    save_mask(folder / "SegmentationClass" / f"{image_name}.png", np.zeros(mask_size))
    return SegmentationDataset(folder, [image_name], ["background", "cat"], **options)


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        # 16 bits, also stored as 32, are scaled and clipped; floats are shares, or bytes
        ("a.png", Image.fromarray(np.uint16([[0, 257, 25700, 65535]])), {}, [0, 1, 100, 255]),
        ("a.tif", Image.fromarray(np.uint16([[0, 257, 25700, 65535]])), {}, [0, 1, 100, 255]),
        ("a.tif", Image.fromarray(np.int32([[-1, 0, 65535, 70000, 257]])), {}, [0, 0, 255, 255, 1]),
        ("a.tif", Image.fromarray(np.float32([[0.0, 0.2, 1.0]])), {}, [0, 51, 255]),
        ("a.tif", Image.fromarray(np.float32([[-5.0, 100.2, 300.0]])), {}, [0, 100, 255]),
        ("a.png", Image.fromarray(np.uint8([[[9, 9, 9, 0], [7, 7, 7, 255]]])), {}, [255, 7]),
        ("a.png", Image.fromarray(np.uint8([[[9, 0], [8, 255]]]), "LA"), {}, [255, 8]),
        ("a.png", palette_image(), {"transparency": 0}, [255, GREEN[0]]),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_data_sets_and_photos_have_the_same_pixels(tmp_path, name, image, options, expected):
    (tmp_path / "JPEGImages").mkdir()
    photo = read_image(save(tmp_path / "JPEGImages" / name, image, **options))
    assert photo[0].tolist() == [expected] and photo.dtype == torch.uint8
    sample, _ = one_pair(tmp_path, "a", (1, len(expected)))[0]
    assert torch.equal(sample, photo)


def save_turned(path, orientation, size):
    """A green image (width, height) whose stored upper left corner is red, and an EXIF tag."""
    image = Image.new("RGB", size, GREEN)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    return save(path, image, exif=exif)


@pytest.mark.parametrize(("orientation", "size"), [(3, (64, 32)), (6, (64, 64))])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_stored_pixels_that_fit_the_mask_are_kept_and_it_is_said_once(
    tmp_path, capsys, orientation, size, suffix
):
    path = save_turned(tmp_path / "JPEGImages" / f"a.{suffix}", orientation, size)
    image, _ = one_pair(tmp_path, "a", size[::-1])[0]
    assert close(image, 4, 4, RED, 40) and close(image, size[0] - 4, size[1] - 4, GREEN, 40)
    corner = (4, 4) if orientation == 3 else (size[0] - 4, 4)
    assert not close(read_image(path), 4, 4, RED, 40)  # without a mask it is turned
    assert orientation == 3 or close(read_image(path), *corner, RED, 40)
    one_pair(tmp_path, "a", size[::-1])[0]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"note: {path}: EXIF") and "1 such" in said[0]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_image_is_turned_where_only_its_turned_size_fits_the_mask(tmp_path, capsys, suffix):
    save_turned(tmp_path / "JPEGImages" / f"a.{suffix}", 6, (64, 32))
    dataset = one_pair(tmp_path, "a", (64, 32))
    image, target = dataset[0]
    assert image.shape == (3, 64, 32) and dataset.image_sizes() == [tuple(target.shape)]
    assert close(image, 28, 4, RED, 40) and close(image, 4, 4, GREEN, 40)
    dataset.check_sizes()
    assert "EXIF" not in capsys.readouterr().err


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
    "profile of 2 MB": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000))),
    "profile cut off": chunk(b"iCCP", b""),
    "profile not compressed": chunk(b"iCCP", b"x\0\0garbage"),
    "profile with a wrong checksum": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"a"))[:-1] + b"?",
    "EXIF of garbage": chunk(b"eXIf", b"garbage"),
    "EXIF in hexadecimals": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzzzz"),
}


@pytest.mark.parametrize("broken", BROKEN_CHUNKS)
def test_png_with_broken_metadata_is_read(tmp_path, broken):
    (tmp_path / "a.png").write_bytes(png([3, 200, 77], 8, 0, BROKEN_CHUNKS[broken]))
    assert read_image(tmp_path / "a.png")[0].tolist() == [[3, 200, 77]]


def segment(marker, data):
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


UNREADABLE_IFD = b"II*\0\x08\0\0\0\x01\0\x69\x87\4\0\1\0\0\0\xff\xff\xff\xff\0\0\0\0"
BROKEN_SEGMENTS = {
    "profile cut off": segment(0xE2, b"ICC_PROFILE\0"),
    "profile of garbage": segment(0xE2, b"ICC_PROFILE\0\1\1garbage"),
    "EXIF of garbage": segment(0xE1, b"Exif\0\0garbage garbage"),
    "EXIF that leads nowhere": segment(0xE1, b"Exif\0\0" + UNREADABLE_IFD),
    "orientation of text": segment(
        0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0\0\0\0\0"
    ),
    "orientation 9": segment(
        0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0\0\0\0\0"
    ),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("broken", BROKEN_SEGMENTS)
def test_jpeg_with_broken_metadata_is_read(tmp_path, broken):
    whole = save(tmp_path / "whole.jpg", two_colours((64, 48)))
    file = whole.read_bytes()
    (tmp_path / "a.jpg").write_bytes(file[:2] + BROKEN_SEGMENTS[broken] + file[2:])
    assert torch.equal(read_image(tmp_path / "a.jpg"), read_image(whole))


def test_image_size_is_read_from_the_header(tmp_path):
    file = png([1] * 40, 8, 0)
    (tmp_path / "a.png").write_bytes(file[: file.index(b"IDAT") + 8])
    assert image_size(tmp_path / "a.png") == (1, 40)


def test_unreadable_image_in_a_worker_is_one_line(run, tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"hello")
    dataset = one_pair(tmp_path, "a", (2, 2))

    def main(_):
        with worker_faults_explained():
            next(iter(DataLoader(dataset, num_workers=1)))

    path = tmp_path / "JPEGImages" / "a.jpg"
    assert run(main).error.startswith(f"error: {path}: not an image")
