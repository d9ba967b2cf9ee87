"""The framing of TFRecord files (https://www.tensorflow.org/tutorials/load_data/tfrecord)."""


def framed(record: bytes) -> bytes:
    """Return a record as it is in a file: its length, the checksum of that, the record, and its checksum."""
    length = len(record).to_bytes(8, "little")
    return length + masked_crc32c(length) + record + masked_crc32c(record)


def masked_crc32c(data: bytes) -> bytes:
    """Return the masked CRC-32C of data: 4 bytes."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")
