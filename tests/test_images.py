"""Pictures of every kind become the RGB picture their author saw, or an error that names them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minivl2.images import MOST_PIXELS, ImageError, open_image

RED, GREEN = (255, 0, 0), (0, 255, 0)


def colours(image):
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


def saved(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode, pixel, want", [
    ("RGB", (1, 2, 3), (1, 2, 3)),
    ("L", 77, (77, 77, 77)),
    ("1", 1, (255, 255, 255)), ("1", 0, (0, 0, 0)),
    ("CMYK", (0, 255, 255, 0), RED),
    ("RGBA", (255, 0, 0, 255), RED), ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
    ("RGBA", (0, 0, 0, 51), (204, 204, 204)),               # a fifth of black on white
    ("LA", (0, 0), (255, 255, 255)), ("LA", (9, 255), (9, 9, 9)),
])
def test_every_mode_becomes_rgb_on_white(mode, pixel, want):
    image = open_image(Image.new(mode, (2, 1), pixel))
    assert image.mode == "RGB" and colours(image) == [want] * 2


def test_palettes_are_looked_up_and_their_transparent_colour_is_white(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, 0, 0, 255])
    for x in range(3):
        image.putpixel((x, 0), x)
    assert colours(open_image(saved(image, tmp_path / "a.png"))) == [RED, GREEN, (0, 0, 255)]
    path = saved(image, tmp_path / "b.png", transparency=1)
    assert colours(open_image(path)) == [RED, (255, 255, 255), (0, 0, 255)]


def test_one_transparent_colour_of_an_rgb_picture_is_white(tmp_path):
    path = saved(Image.new("RGB", (1, 1), RED), tmp_path / "a.png", transparency=RED)
    assert colours(open_image(path)) == [(255, 255, 255)]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_greys_are_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"a.{suffix}")
    assert colours(open_image(path)) == [(n, n, n) for n in (0, 1, 128, 255)]


@pytest.mark.parametrize("values, message", [
    (np.array([[70000]], dtype=np.int32), "32-bit pixels, from 70000 to 70000"),
    (np.array([[-1]], dtype=np.int32), "32-bit pixels"),
    (np.array([[0.5]], dtype=np.float32), "floating-point pixels: which value is white"),
])
def test_numbers_that_are_no_colours_are_refused(values, message):
    with pytest.raises(ImageError, match=message):
        open_image(Image.fromarray(values))


def test_a_photo_held_sideways_is_turned_upright(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 6        # "turn clockwise by a quarter"
    upright = open_image(saved(image, tmp_path / "a.png", exif=exif))
    assert upright.size == (1, 2) and colours(upright) == [RED, GREEN]


def test_the_callers_image_is_not_changed():
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    open_image(image)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (255, 0, 0, 0)


# ------------------------------------------------------------------------------------------ what is no image


def jpeg():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    return file.getvalue()


def png_that_claims(width, height):
    """A header and nothing behind it."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("content, message", [
    (b"", "bad.png is not an image that Pillow can read"),
    (b"a letter, not a picture", "bad.png is not an image that Pillow can read"),
    (jpeg()[:600], r"bad.png cannot be read: .*\. Is the file complete\?"),
    (jpeg()[:3], "bad.png (is not an image|cannot be read)"),
    (png_that_claims(5, 5), "bad.png cannot be read"),
    (png_that_claims(10_001, 10_000), "bad.png is 10001x10000 pixels, more than 100,000,000"),
    (png_that_claims(60_000, 60_000), "bad.png claims to be larger than 100,000,000 pixels"),
], ids=["empty", "text", "cut short", "three bytes", "no pixels", "too large", "absurd"])
def test_a_bad_file_is_named_and_described(tmp_path, content, message):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        open_image(tmp_path / "bad.png")
    with pytest.raises(ImageError):
        open_image(str(tmp_path / "bad.png"))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ImageError, match="nowhere.png does not exist"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder, not an image"):
        open_image(tmp_path)


def test_an_image_without_a_file_is_just_the_image():
    with pytest.raises(ImageError, match="the image is 0x5: it has no pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_the_largest_size_is_about_ten_thousand_squared():
    assert MOST_PIXELS == 10_000**2
