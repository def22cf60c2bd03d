import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from modules.images import image_files, open_image, read_size, resize_and_crop, to_tensor

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def save(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def pixel(path, at=(0, 0)):
    image = open_image(path)
    assert image.mode == "RGB"
    return image.getpixel(at)


@pytest.mark.parametrize(
    ("orientation", "red_at"),
    [(1, (0, 0)), (2, (3, 0)), (3, (3, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)), (8, (0, 3))],
)
def test_exif_orientation_is_applied(tmp_path, orientation, red_at):
    image = Image.new("RGB", (4, 2), BLUE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, image, exif=exif)
    assert pixel(path, red_at) == RED
    assert read_size(path) == open_image(path).size == ((2, 4) if orientation > 4 else (4, 2))


def test_damaged_exif_leaves_the_image(tmp_path):
    path = save(tmp_path, Image.new("RGB", (4, 2), RED), "image.jpg", exif=b"Exif\0\0garbage")
    assert open_image(path).size == read_size(path) == (4, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    path = save(tmp_path, image.convert(mode), "image.tif" if mode == "PA" else "image.png")
    assert pixel(path, (0, 0)) == WHITE
    assert pixel(path, (1, 0)) == (0, 0, 0)


def test_half_transparency_is_blended(tmp_path):
    path = save(tmp_path, Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert pixel(path) == (127, 127, 127)


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*BLUE, *RED])
    image.putpixel((1, 0), 1)
    path = save(tmp_path, image, transparency=0)
    assert pixel(path, (0, 0)) == WHITE
    assert pixel(path, (1, 0)) == RED


def test_palette_grey_and_one_bit(tmp_path):
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([10, 20, 30])
    assert pixel(save(tmp_path, palette)) == (10, 20, 30)
    assert pixel(save(tmp_path, Image.new("L", (1, 1), 77))) == (77, 77, 77)
    assert pixel(save(tmp_path, Image.new("1", (1, 1), 1))) == WHITE


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.pgm"])
def test_sixteen_bit_grey_keeps_its_tones(tmp_path, name):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    path = save(tmp_path, Image.fromarray(values), name)
    assert [pixel(path, (x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_sixteen_bit_colour(tmp_path):
    row = b"\0" + struct.pack(">6H", 65535, 0, 128 * 257, 0, 65535, 0)

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert pixel(path, (0, 0)) == (255, 0, 128)
    assert pixel(path, (1, 0)) == (0, 255, 0)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_floating_point_image(tmp_path, scale):
    values = np.array([[0, 0.2, 1]], dtype=np.float32) * scale
    path = save(tmp_path, Image.fromarray(values), "image.tif")
    assert [pixel(path, (x, 0))[0] for x in range(3)] == [0, 51, 255]


def test_cmyk(tmp_path):
    path = save(tmp_path, Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "image.tif")
    assert pixel(path) == RED
    jpeg = save(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "image.jpg", quality=100)
    np.testing.assert_allclose(pixel(jpeg), RED, atol=3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    path = tmp_path / f"image.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixel(path, (8, 8)), RED, atol=4)


def test_colour_profile_is_converted_and_not_kept(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    broken = save(tmp_path, Image.new("RGB", (1, 1), RED), icc_profile=lab)
    assert pixel(broken) == RED  # a profile of other colours than the image's
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = open_image(save(tmp_path, Image.new("RGB", (1, 1), (9, 99, 199)), icc_profile=grey))
    assert image.getpixel((0, 0)) == (9, 99, 199)
    assert image.info == {}


def test_linear_profile_changes_the_tones(tmp_path):
    path = save(tmp_path, Image.new("RGB", (1, 1), (64, 64, 64)), icc_profile=linear_profile())
    np.testing.assert_allclose(pixel(path), (137, 137, 137), atol=2)  # sRGB of 64 / 255


def linear_profile():
    """sRGB's primaries with gamma 1: its curves replaced in the profile's bytes."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = bytearray(
        bytes(profile).replace("sRGB".encode("utf-16-be"), "Line".encode("utf-16-be"))
    )
    count = struct.unpack_from(">I", profile, 128)[0]
    for i in range(count):
        tag, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            assert size >= 12
            profile[offset : offset + 12] = b"curv" + bytes(8)
    return bytes(profile)


def test_jpeg_is_decoded_smaller_but_not_too_small(tmp_path):
    path = save(tmp_path, Image.linear_gradient("L").resize((800, 600)), "image.jpg")
    assert open_image(path, at_least=(150, 150)).size == (200, 150)
    assert open_image(path, at_least=(500, 500)).size == (800, 600)


def test_turned_jpeg_is_decoded_smaller_by_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, Image.new("RGB", (800, 200)), "image.jpg", exif=exif)
    assert open_image(path, at_least=(100, 400)).size == (100, 400)
    assert open_image(path, at_least=(150, 200)).size == (200, 800)


def test_faulty_files_raise_one_error_with_the_name(tmp_path):
    whole = save(tmp_path, Image.effect_noise((64, 64), 50), "whole.jpg").read_bytes()
    png = save(tmp_path, Image.effect_noise((64, 64), 50), "whole.png").read_bytes()
    faulty = {
        "half.jpg": whole[: len(whole) // 2],
        "half.png": png[: len(png) // 2],
        "flipped.png": png[:40] + b"\xff" * 40 + png[80:],
        "text.png": b"not an image",
        "empty.webp": b"",
        "photo.heic": b"\0\0\0\x18ftypheic",
    }
    for name, content in faulty.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            open_image(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        open_image(tmp_path / "absent.png")


def test_bomb_is_refused_but_a_large_scan_is_not_warned_about(tmp_path, monkeypatch, recwarn):
    path = save(tmp_path, Image.new("L", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    open_image(path)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image\.png: has too many pixels"):
        open_image(path)


@pytest.mark.parametrize(
    ("original", "bucket", "crop", "resized"),
    [
        ((100, 50), (64, 64), (0, 32), (128, 64)),
        ((50, 100), (64, 64), (32, 0), (64, 128)),
        ((30, 20), (60, 40), (0, 0), (60, 40)),
        ((40, 40), (64, 48), (8, 0), (64, 64)),
    ],
)
def test_resize_and_crop(original, bucket, crop, resized):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (*original[::-1], 3), dtype=np.uint8))
    result, crop_top_left, resized_size = resize_and_crop(image, bucket)
    assert (result.size, crop_top_left, resized_size) == (bucket, crop, resized)
    top, left = crop
    whole = image.resize(resized, Image.Resampling.LANCZOS)
    expected = whole.crop((left, top, left + bucket[0], top + bucket[1]))
    difference = np.asarray(result, dtype=int) - np.asarray(expected, dtype=int)
    assert abs(difference).max() <= 1


def test_very_long_image_needs_little_memory():
    result, crop, resized = resize_and_crop(Image.new("RGB", (200_000, 2)), (512, 512))
    assert (result.size, resized) == ((512, 512), (51_200_000, 512))
    assert crop == (0, (51_200_000 - 512) // 2)


def test_to_tensor():
    image = Image.new("RGB", (3, 2), (0, 255, 51))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 3)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    torch.testing.assert_close(to_tensor(image, minimum=0)[:, 0, 0], torch.tensor([0, 1.0, 0.2]))


def test_image_files_are_sorted_and_survive_loops(tmp_path):
    names = ["b.png", "a/c.JPG", "a/deep/e.webp", "a.b.png", ".hidden.png", "notes.txt"]
    for name in [*names, ".cache/f.png", "out/g.png"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "broken.png").symlink_to(tmp_path / "absent.png")
    except OSError:
        pass  # Windows gives links to administrators only
    found = image_files(tmp_path, exclude=[tmp_path / "out"])
    assert [name for name, _ in found] == ["a.b.png", "a/c.JPG", "a/deep/e.webp", "b.png"]
    assert found[1][1] == tmp_path / "a" / "c.JPG"
    with pytest.raises(ValueError, match="no such directory"):
        image_files(tmp_path / "absent")
