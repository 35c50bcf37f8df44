"""Random batches from a file larger than a cache: rows read one by one from their bytes, as ddcnn does, or by HDF5 from chunks.

    python benchmarks/random_rows.py [--shape 16x16x3] [--rows 200000] [--batch-size 128] [--chunks 1,16,256,4096] [--rounds 5]

Writes a dataset for each number of rows a chunk (and one without chunks) into a temporary folder, and reads the same random batches from
each in alternating order; what is read is compared. Files are in the page cache, as they are from the second epoch on where there is
memory for them: what is measured is what the reading itself takes. Prints JSON: median rows a second.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.row_reader import FileRows, extent_of

BATCHES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="16x16x3")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--chunks", default="1,16,256,4096")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    shape, random = tuple(map(int, asked.shape.split("x"))), np.random.default_rng(0)
    pixels = random.integers(0, 255, (asked.rows, *shape), np.uint8)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for rows in [None, *map(int, asked.chunks.split(","))]:
            with h5py.File(Path(folder) / f"{rows}.h5", "w") as file:
                file.create_dataset("images", data=pixels, chunks=rows and (rows, *shape))
        for _ in range(asked.rounds):
            drawn = random.integers(0, asked.rows, (BATCHES, asked.batch_size))
            batches = [np.unique(batch) for batch in drawn]  # HDF5 takes ascending rows
            for path in sorted(Path(folder).iterdir()):
                with h5py.File(path) as file:
                    dataset = file["images"]
                    reader = FileRows(path, [extent_of(dataset, path, 0)], shape, pixels.dtype)
                    for name, read in (("one by one", reader.read), ("by HDF5", dataset.__getitem__)):
                        begin = time.perf_counter()
                        images = [read(batch) for batch in batches]
                        seconds = time.perf_counter() - begin
                        assert all(np.array_equal(one, pixels[batch]) for one, batch in zip(images, batches, strict=True))
                        found.setdefault(path.stem, {}).setdefault(name, []).append(sum(map(len, batches)) / seconds)
    median = {rows: {name: round(float(np.median(each))) for name, each in one.items()} for rows, one in found.items()}
    print(json.dumps({"benchmark": "random_rows", "options": vars(asked), "rows_per_second_by_rows_a_chunk": median}, indent=1))


if __name__ == "__main__":
    main()
