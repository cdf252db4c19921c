"""One picture: formats, channels, sizes, and what is refused and why."""

import numpy as np
import pytest
from PIL import Image
from samples import message_of, random_pictures, save_picture

from capsnet.data.pictures import PICTURE_SUFFIXES, read_picture, read_pictures
from capsnet.data.trees import scan


def test_formats_that_people_have_are_read():
    """Those of traffic signs, of faces and of pictures from the web too."""
    names = ".png .jpg .jpeg .jfif .bmp .gif .tif .tiff .webp .ppm .pgm .pbm"
    assert set(names.split()) < PICTURE_SUFFIXES


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
def test_every_format_is_read(tmp_path, suffix):
    path = tmp_path / f"0{suffix.upper()}"
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(path)
    assert scan(tmp_path).pictures == [path]
    difference = read_picture(path, None, 3).astype(int) - pixels
    assert abs(difference).max() <= 4


def test_transparency_that_is_used_makes_four_channels(tmp_path):
    palette = Image.fromarray(random_pictures(1, (6, 5, 3))[0]).convert("P")
    colours = set(np.asarray(palette).ravel().tolist())
    unused = next(index for index in range(256) if index not in colours)
    palette.save(tmp_path / "unused.png", transparency=unused)
    assert "transparency" in Image.open(tmp_path / "unused.png").info
    used = palette.getpixel((0, 0))
    palette.save(tmp_path / "used.png", transparency=used)
    assert read_picture(tmp_path / "unused.png", None, None).shape[2] == 3
    with_alpha = read_picture(tmp_path / "used.png", None, None)
    assert with_alpha.shape[2] == 4 and with_alpha[0, 0, 3] == 0
    without = read_picture(tmp_path / "used.png", None, 3)
    assert without[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_become_eight(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for name in ("0.png", "0.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = read_picture(tmp_path / name, None, None)
        assert pixels.shape == (16, 16, 1)
        assert pixels.ravel().tolist() == list(range(256))


def test_exif_rotation_is_honoured(tmp_path):
    path = tmp_path / "0.png"
    pixels = random_pictures(1, (6, 5))[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(
        read_picture(path, None, 1)[..., 0], np.rot90(pixels, -1)
    )


def test_first_frame_of_a_gif(tmp_path):
    path = tmp_path / "0.gif"
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert (read_picture(path, None, 1) == 10).all()


def test_grey_is_itu_luma_and_resizing_averages(tmp_path):
    path = save_picture(
        tmp_path / "0.png", np.full((4, 4, 3), (255, 0, 0), np.uint8)
    )
    assert (read_picture(path, None, 1) == 76).all()
    board = np.indices((20, 20)).sum(axis=0) % 2 * 200
    path = save_picture(tmp_path / "1.png", board.astype(np.uint8)[..., None])
    small = read_picture(path, (5, 4), 1)
    assert small.shape == (5, 4, 1)
    assert abs(small.astype(int) - 100).max() < 15


def test_pictures_come_in_the_models_size_and_channels(tmp_path):
    files = [
        str(
            save_picture(
                tmp_path / f"{size[0]}.png", random_pictures(1, size)[0]
            )
        )
        for size in ((6, 5, 3), (8, 7, 3))
    ]
    pictures, unreadable, resized = read_pictures(
        [*files, str(tmp_path / "gone.png")], (6, 5, 1)
    )
    assert [path for path, _ in pictures] == files
    assert all(pixels.shape == (6, 5, 1) for _, pixels in pictures)
    assert resized == 1 and len(unreadable) == 1
    np.testing.assert_array_equal(
        pictures[1][1], read_picture(files[1], (6, 5), 1)
    )


# What is refused, and why


def test_damaged_pictures_are_broken(tmp_path):
    path = save_picture(tmp_path / "0.png", random_pictures(1)[0])
    path.write_bytes(path.read_bytes()[:-30])
    message = message_of(read_picture, path, None, 1)
    assert str(path) in message and "(broken)" in message


def test_wrong_checksum_makes_a_picture_broken(tmp_path):
    path = save_picture(tmp_path / "0.png", random_pictures(1)[0])
    content = bytearray(path.read_bytes())
    content[-13] ^= 1  # The end of the pixels' checksum; 12 bytes follow.
    path.write_bytes(content)
    assert "(broken)" in message_of(read_picture, path, None, 1)


def test_a_picture_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "0.png"
    assert "No such file" in message_of(read_picture, path, None, 1)


@pytest.mark.parametrize(
    "values, reason",
    [
        (np.zeros((4, 4), np.float32), "floating point"),
        (np.full((4, 4), 70_000, np.int32), "more than 16 bits"),
    ],
)
def test_pictures_of_other_numbers_are_called_so(tmp_path, values, reason):
    path = tmp_path / "0.tif"
    Image.fromarray(values).save(path)
    message = message_of(read_picture, path, None, 1)
    assert str(path) in message and reason in message


def test_small_files_that_claim_many_pixels_are_called_so(tmp_path):
    path = tmp_path / "0.png"
    Image.new("1", (2000, 2000)).save(path)
    assert read_picture(path, (4, 4), 1).shape == (4, 4, 1)
    Image.new("1", (3000, 3000)).save(path)
    message = message_of(read_picture, path, None, 1)
    assert "more pixels than its file can hold" in message


@pytest.mark.parametrize("side", [10_000, 14_000])
def test_pictures_that_are_far_too_large_are_called_so(tmp_path, side):
    """Pillow warns of 89 million pixels, and refuses twice as many."""
    path = tmp_path / "0.png"
    Image.new("1", (side, side)).save(path)
    message = message_of(read_picture, path, None, 1)
    assert "too large: more than 89,478,485 pixels" in message


def test_a_picture_that_does_not_fit_in_memory_is_called_so(tmp_path):
    path = save_picture(tmp_path / "0.png", random_pictures(1)[0])
    message = message_of(read_picture, path, (2**29, 2**29), 4)
    assert "memory" in message and str(path) in message
