"""What `demo` trains on: drawn from a seed, with known faults."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from job.demo.drawings import CLASSES, draw

PHOTOS_PER_CLASS = 4
PLANTED = {
    "README.md",
    "dots/constant.jpg",
    "dots/cut off half-way.jpg",
    "grids/0 bytes.jpg",
    "grids/schönes altes Gitter.jpg",
    "rings/copied (1).jpg",
    "rings/copied.jpg",
    "rings/html page.jpg",
    "stars/also among triangles.jpg",
    "stars/transparent.png",
    "stripes/.DS_Store",
    "stripes/grayscale.jpg",
    "triangles/also among stars.jpg",
    "triangles/lying on its side.jpg",
    "waves/a png really.jpg",
    "waves/original, smaller.jpg",
    "waves/original.jpg",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = tmp_path_factory.mktemp("drawn")
    draw(drawn, seed=0, photos_per_class=PHOTOS_PER_CLASS)
    return drawn


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _numbered(folder: Path) -> dict[str, bytes]:
    return {path: payload for path, payload in _contents(folder).items() if path not in PLANTED}


def _open(folder: Path, path: str) -> Image.Image:
    return Image.open(io.BytesIO((folder / path).read_bytes()))


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    draw(tmp_path / "new" / "folder", seed=0, photos_per_class=PHOTOS_PER_CLASS)
    assert _contents(tmp_path / "new" / "folder") == _contents(folder)


def test_another_seed_gives_other_pictures_throughout(folder: Path, tmp_path: Path) -> None:
    draw(tmp_path, seed=1, photos_per_class=PHOTOS_PER_CLASS)
    assert not set(_numbered(tmp_path).values()) & set(_numbered(folder).values())


def test_a_picture_does_not_depend_on_how_many_are_drawn(folder: Path, tmp_path: Path) -> None:
    draw(tmp_path, seed=0, photos_per_class=2)
    assert _contents(tmp_path).items() <= _contents(folder).items()


def test_every_class_has_a_folder_with_its_numbered_pictures(folder: Path) -> None:
    assert sorted(child.name for child in folder.iterdir() if child.is_dir()) == sorted(CLASSES)
    for class_name in CLASSES:
        stems = sorted(Path(path).stem for path in _numbered(folder) if path.startswith(f"{class_name}/"))
        assert stems == [f"{class_name}-{number:03}" for number in range(PHOTOS_PER_CLASS)]


def test_numbered_pictures_all_differ_and_are_what_their_names_say(folder: Path) -> None:
    numbered = _numbered(folder)
    assert len(set(numbered.values())) == len(CLASSES) * PHOTOS_PER_CLASS
    for path, payload in numbered.items():
        image = Image.open(io.BytesIO(payload))
        assert (image.format, image.mode) == ("PNG" if path.endswith(".png") else "JPEG", "RGB")
        assert all(0.87 * 128 < side < 1.31 * 128 for side in image.size)
        assert np.asarray(image).std() > 10


def test_side_px_sets_the_size(tmp_path: Path) -> None:
    draw(tmp_path, seed=0, photos_per_class=1, side_px=64)
    for payload in _numbered(tmp_path).values():
        assert all(0.87 * 64 - 1 < side < 1.31 * 64 for side in Image.open(io.BytesIO(payload)).size)


def test_nothing_else_is_planted(folder: Path) -> None:
    assert set(_contents(folder)) - set(_numbered(folder)) == PLANTED


def test_cut_off_jpeg_has_a_good_header_and_ends_too_early(folder: Path) -> None:
    image = _open(folder, "dots/cut off half-way.jpg")
    assert image.format == "JPEG"
    with pytest.raises(OSError, match="truncated"):
        image.load()


def test_files_that_are_no_pictures(folder: Path) -> None:
    assert (folder / "grids/0 bytes.jpg").read_bytes() == b""
    assert (folder / "rings/html page.jpg").read_bytes().startswith(b"<!DOCTYPE html>")


def test_label_conflict_is_the_same_bytes_in_two_classes(folder: Path) -> None:
    conflict = (folder / "stars/also among triangles.jpg").read_bytes()
    assert conflict == (folder / "triangles/also among stars.jpg").read_bytes()
    assert Image.open(io.BytesIO(conflict)).format == "JPEG"


def test_a_png_has_the_name_of_a_jpeg(folder: Path) -> None:
    assert _open(folder, "waves/a png really.jpg").format == "PNG"


def test_grayscale_and_transparent_pictures(folder: Path) -> None:
    assert _open(folder, "stripes/grayscale.jpg").mode == "L"
    transparent = _open(folder, "stars/transparent.png")
    assert transparent.mode == "RGBA"
    low, high = transparent.getchannel("A").getextrema()
    assert low < 16
    assert high > 239


def test_lying_photo_stands_upright_when_its_exif_is_honoured(folder: Path) -> None:
    stored = _open(folder, "triangles/lying on its side.jpg")
    assert stored.getexif()[0x0112] == 6
    upright = ImageOps.exif_transpose(stored)
    assert upright.size == (stored.height, stored.width)
    # From top to bottom a row of triangles darkens slowly, from tip to base, and then lightens at once.
    change_H = np.diff(np.asarray(upright.convert("L"), np.float64).mean(axis=1))
    assert change_H.max() > -1.5 * change_H.min()


def test_exact_copies_share_their_bytes(folder: Path) -> None:
    assert (folder / "rings/copied.jpg").read_bytes() == (folder / "rings/copied (1).jpg").read_bytes()


def test_near_copy_is_smaller_and_shows_the_same(folder: Path) -> None:
    original, smaller = (_open(folder, f"waves/{name}.jpg") for name in ("original", "original, smaller"))
    assert smaller.width < 0.8 * original.width
    first, second = (np.asarray(i.convert("L").resize((40, 40)), np.float64).ravel() for i in (original, smaller))
    assert np.corrcoef(first, second)[0, 1] > 0.98


def test_constant_picture_has_one_colour(folder: Path) -> None:
    assert all(low == high for low, high in _open(folder, "dots/constant.jpg").getextrema())


def test_file_with_spaces_and_an_umlaut_is_a_photo(folder: Path) -> None:
    assert _open(folder, "grids/schönes altes Gitter.jpg").format == "JPEG"


def test_means_and_spreads_of_colour_hardly_tell_the_classes_apart(tmp_path: Path) -> None:
    """Each picture goes to the class whose other pictures have the nearest mean; chance is one in seven."""
    draw(tmp_path, seed=0, photos_per_class=30, side_px=64)
    labels, rows = [], []
    for path, payload in sorted(_numbered(tmp_path).items()):
        pixels_PC = np.asarray(Image.open(io.BytesIO(payload)), np.float64).reshape(-1, 3)
        labels.append(path.split("/")[0])
        rows.append([*pixels_PC.mean(0), *pixels_PC.std(0), pixels_PC.mean(), pixels_PC.mean(1).std()])
    label_N, features_NF = np.asarray(labels), np.asarray(rows) / np.std(rows, axis=0)
    hits = 0
    for n, features_F in enumerate(features_NF):
        others_N = np.arange(len(label_N)) != n
        distances = {c: np.linalg.norm(features_NF[others_N & (label_N == c)].mean(0) - features_F) for c in CLASSES}
        hits += min(CLASSES, key=lambda c: distances[c]) == label_N[n]
    assert hits / len(label_N) < 0.3
