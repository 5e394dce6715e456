"""Forge image files: dimensions, chunks, tags and EXIF changed with checksums repaired, bombs, and other formats."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from fuzz.mutations import EXTREMES, Change

SIDES = (0, 1, 2, 31, 33, 64, 255, 256, 1000, 16383, 16384, 20000, 65535, 10**6, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
SIZE = 32
Chunks = list[tuple[bytes, bytes]]


def ramp(dtype: Any, top: float, channels: int = 1) -> np.ndarray:
    """Return (32, 32) or (32, 32, channels) rising from 0 to ``top`` along both sides."""
    rise = np.add.outer(np.arange(SIZE), np.arange(SIZE)) / (2 * SIZE - 2) * top
    values = np.stack([np.roll(rise, 5 * channel, axis=0) for channel in range(channels)], axis=2)
    return (values[..., 0] if channels == 1 else values).astype(dtype)


@lru_cache
def pictures() -> dict[str, bytes]:
    """Return small valid images by name: each format in its modes."""
    colour = Image.fromarray(ramp(np.uint8, 255, 3))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a ramp"
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        **{f"{mode}.png": (colour.convert(mode), {}) for mode in ("RGB", "L", "LA", "P", "RGBA", "1")},
        "transparent.png": (colour.convert("P"), {"transparency": 3}),
        "exif.png": (colour, {"exif": exif}),
        "16bit.png": (Image.fromarray(ramp(np.uint16, 65535)), {}),
        "frames.png": (colour, {"save_all": True, "append_images": [colour.rotate(90)]}),
        "RGB.jpg": (colour, {"quality": 90}),
        "L.jpg": (colour.convert("L"), {}),
        "CMYK.jpg": (colour.convert("CMYK"), {}),
        "progressive.jpg": (colour, {"progressive": True, "exif": exif}),
        **{f"{m}.tif": (colour.convert(m), {}) for m in ("RGB", "L", "RGBA", "CMYK", "1", "P", "YCbCr")},
        "LAB.tif": (colour.convert("LAB"), {"icc_profile": b""}),  # its profile would contain the time
        "16bit.tif": (Image.fromarray(ramp(np.uint16, 65535)), {}),
        "int32.tif": (Image.fromarray(ramp(np.int32, 2**31 - 1)), {}),
        "float.tif": (Image.fromarray(ramp(np.float32, 1.0)), {}),
        "deflate.tif": (colour, {"compression": "tiff_adobe_deflate", "exif": exif}),
        "lzw.tif": (colour, {"compression": "tiff_lzw"}),
        "pages.tif": (colour, {"save_all": True, "append_images": [colour.rotate(90)]}),
        "RGB.bmp": (colour, {}),
        "P.bmp": (colour.convert("P"), {}),
        "RGB.webp": (colour, {"exif": exif}),
        "lossless.webp": (colour.convert("RGBA"), {"lossless": True}),
        "P.gif": (colour.convert("P"), {}),
        "frames.gif": (colour.convert("P"), {"save_all": True, "append_images": [colour.rotate(90).convert("P")]}),
        "RGB.ppm": (colour, {}),
        "16bit.pgm": (Image.fromarray(ramp(np.uint16, 65535)), {}),
    }
    formats = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}
    return {
        name: encoded(image, formats.get(name[-3:], name.split(".")[1].upper()), **o)
        for name, (image, o) in images.items()
    }


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the encoded image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunks_of(data: bytes) -> Chunks:
    """Return type and content of each chunk of a PNG."""
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png(chunks: Chunks) -> bytes:
    """Return a PNG with correct checksums."""
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def forge_png(rng: Random, data: bytes) -> Change:
    """Change a PNG's header, chunks or metadata."""
    chunks = chunks_of(data)
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    way = rng.randrange(6)
    if way <= 1:
        field = rng.randrange(7)
        header[field] = rng.choice(SIDES) if field < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *header))
        return Change(f"IHDR {header}", png(chunks), forged=True)
    if way == 2:
        chunks[index : index + 1] = rng.choice(([], [(kind, content)] * 2, [(kind, content[:-1])], [(kind, b"")]))
        return Change(f"{kind!r} removed, repeated or cut", png(chunks), forged=True)
    if way == 3:
        rng.shuffle(chunks)
        return Change("chunks in another order", png(chunks), forged=True)
    packed = zlib.compress(bytes(200 << 20) if rng.random() < 0.1 else rng.randbytes(100))
    extra = rng.choice(
        (
            (b"zTXt", b"x\0\0" + packed),
            (b"iCCP", b"x\0\0" + packed),
            (b"iTXt", b"x\0\1\0\0\0" + packed),
            (b"eXIf", rng.randbytes(50)),
            (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff"),
            (b"tRNS", rng.randbytes(rng.choice((0, 1, 6, 300)))),
            (b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 769)))),
            (b"acTL", struct.pack(">II", rng.choice(EXTREMES) % 2**32, 0)),
            (b"gAMA", b"\0"),
            (b"pHYs", b""),
            (b"sBIT", b"\xff" * 9),
            (b"cHRM", b""),
            (b"sRGB", b""),
            (b"tEXt", b""),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 2**31, 0, 0, 0, 9, 9)),
            (b"\0\0\0\0", b""),
        )
    )
    chunks.insert(rng.randint(1, len(chunks)), extra)
    return Change(f"{extra[0]!r} put in", png(chunks), forged=True)


def forge_jpeg(rng: Random, data: bytes) -> Change:
    """Change the header of a JPEG's frame, or one of its segments."""
    at, segments = 2, []
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(slice(at, at + 2 + size))
        at += 2 + size
    frame = next(s for s in segments if data[s.start + 1] in (0xC0, 0xC1, 0xC2))
    changed = bytearray(data)
    where = rng.choice(segments)
    way = rng.randrange(5)
    if way <= 1:
        height, width = (rng.choice((rng.choice(SIDES) % 65536, SIZE)) for _ in range(2))
        changed[frame.start + 5 : frame.start + 9] = struct.pack(">HH", height, width)
        return Change(f"frame of {height} x {width}", bytes(changed), forged=True)
    if way == 2:
        changed[frame.start + rng.randrange(1, frame.stop - frame.start)] = rng.randrange(256)
        return Change("frame header", bytes(changed), forged=True)
    if way == 3:
        changed[where] = rng.choice((b"", data[where] * 2, data[where][:-3], data[where] * 200))
        return Change("a segment removed, repeated or cut", bytes(changed), forged=True)
    body = rng.choice((b"Exif\0\0" + rng.randbytes(40), b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", loop_exif(rng)))
    segment = rng.choice((b"\xff\xe1", b"\xff\xe2", b"\xff\xed", b"\xff\xee")) + struct.pack(">H", len(body) + 2) + body
    return Change("EXIF and its like", data[:2] + segment + data[2:], forged=True)


def loop_exif(rng: Random) -> bytes:
    """Return EXIF with an odd orientation, or with tables that refer to themselves."""
    kind, count = rng.choice((1, 2, 3, 4, 5, 7, 12, 99)), rng.choice((0, 1, 2, 10**6, 2**32 - 1))
    orientation = struct.pack("<HHII", 0x0112, kind, count, rng.choice((0, 6, 8, 9, 255, 2**31)))
    inner = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + inner + struct.pack("<I", 8)


def forge_tiff(rng: Random, data: bytes) -> Change:
    """Change tags of a TIFF: kind, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    table = struct.unpack(order + "I", data[4:8])[0]
    count = struct.unpack_from(order + "H", data, table)[0]
    changed = bytearray(data)
    tags = []
    for _ in range(rng.choice((1, 1, 2))):
        entry = table + 2 + 12 * rng.randrange(count)
        tag = struct.unpack_from(order + "H", data, entry)[0]
        field, pack = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H"), (8, "I"), (8, "H")))
        number = rng.choice((*SIDES, *range(20))) % (65536 if pack == "H" else 2**32)
        struct.pack_into(order + pack, changed, entry + field, number)
        tags.append(f"tag {tag} byte {field}: {number}")
    return Change(", ".join(tags), bytes(changed), forged=True)


def fields(places: tuple[tuple[int, str], ...]) -> Callable[[Random, bytes], Change]:
    """Return a mutation of one number of a header, at an offset, in struct's notation."""

    def mutation(rng: Random, data: bytes) -> Change:
        changed = bytearray(data)
        at, letter = rng.choice(places)
        number = rng.choice((*SIDES, 3, 4, 8, 24)) % 256 ** struct.calcsize("<" + letter)
        struct.pack_into("<" + letter, changed, at, number)
        return Change(f"number at {at}: {number}", bytes(changed), forged=True)

    return mutation


def forge_ppm(rng: Random, data: bytes) -> Change:
    """Change a PPM's header."""
    numbers = [str(rng.choice((*SIDES, "-1", "x", "9" * 5000, "1e3", "32", "32"))) for _ in range(2)]
    top = rng.choice(("255", "65535", "0", "1", "65536", "-1", "100000"))
    kind = rng.choice(("P1", "P2", "P3", "P4", "P5", "P6", "PF", "Pf", "P7", "P0CMYK", "PyRGBA"))
    body = data[rng.choice((11, 13, 15)) :] if rng.random() < 0.8 else b"9" * 10**6
    return Change(f"{kind} {numbers} {top}"[:80], f"{kind}\n{' '.join(numbers)}\n{top}\n".encode() + body, forged=True)


FORGERS: dict[str, Callable[[Random, bytes], Change]] = {
    "png": forge_png,
    "jpg": forge_jpeg,
    "tif": forge_tiff,
    "ppm": forge_ppm,
    "pgm": forge_ppm,
    "bmp": fields((*((at, "I") for at in (2, 10, 14, 18, 22, 30, 34, 46)), (26, "H"), (28, "H"))),
    "gif": fields(((6, "H"), (8, "H"), (10, "B"), (11, "B"), (12, "B"))),
    "webp": fields(((4, "I"), (12, "I"), (16, "I"), (20, "B"), (23, "B"), (24, "H"), (26, "H"), (27, "H"))),
}


@lru_cache(maxsize=4)
def bomb(width: int, height: int, bits: int, colour: int) -> bytes:
    """Return a PNG of zeros of the given size."""
    row = bytes(1 + (width * bits * {0: 1, 2: 3, 3: 1, 6: 4}[colour] + 7) // 8)
    packer = zlib.compressobj(9)
    content = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    palette = [(b"PLTE", bytes(6))] if colour == 3 else []
    return png([(b"IHDR", header), *palette, (b"IDAT", content), (b"IEND", b"")])


def whole(rng: Random, _: bytes) -> Change:
    """Return a decompression bomb, or a file of another format under the image's name."""
    if rng.random() < 0.4:
        width, height = rng.choice(
            ((1, 10**6), (10**6, 1), (13000, 13000), (9000, 9000), (3, 300000), (30000, 5900), (2, 10**5))
        )
        bits, colour = rng.choice(((1, 0), (8, 0), (1, 3), (8, 2) if width * height < 10**8 else (1, 0)))
        return Change(
            f"{width} x {height}, {bits} bit, colour {colour}", bomb(width, height, bits, colour), forged=True
        )
    kind = rng.choice(
        ("EPS", "ICO", "PCX", "TGA", "SGI", "DDS", "JPEG2000", "ICNS", "AVIF", "MSP", "IM", "SPIDER", "BLP")
    )
    mode = {"MSP": "1", "SPIDER": "F", "BLP": "P"}.get(kind, "RGB")
    data = encoded(Image.fromarray(ramp(np.uint8, 255, 3)).convert(mode), kind)
    script = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(%pipe%mkdir executed) (w) file\nshowpage\n"
    )
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>'
    return rng.choice((Change(kind, data, forged=True), Change("PostScript", script, forged=True), Change("SVG", svg)))
