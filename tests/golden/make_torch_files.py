"""Writes the small files that PyTorch and scikit-learn themselves make, for the readers that do without them.

Run: python tests/golden/make_torch_files.py   (needs torch, scikit-learn and joblib)
"""

import argparse
import collections
import warnings
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans

FOLDER = Path(__file__).parent


def main() -> None:
    """Writes the files beside this script."""
    torch.manual_seed(0)
    table = torch.randn(5, 4)
    state = collections.OrderedDict(
        table=table,
        tied=table,
        transposed=table.t(),
        part=table[1:3, 2:],
        parameter=torch.nn.Parameter(torch.randn(3)),
        half=torch.randn(2, 2).half(),
        low=torch.tensor([1.0, -2.5, 3e38]).bfloat16(),
        count=torch.tensor(7),
        flags=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
    )
    state._metadata = collections.OrderedDict(version=1)
    whole = {"model": state, "scheduler": {"_last_lr": [np.float64(0.1)], "base_lrs": [1e-4]}, "steps": 1800000}
    whole["args"] = argparse.Namespace(name="tiny", layers=[1, 2])
    torch.save(whole, FOLDER / "torch_zip.pyt")
    torch.save(whole, FOLDER / "torch_legacy.pyt", _use_new_zipfile_serialization=False)
    points = np.random.default_rng(0).standard_normal((60, 4))
    numbers = {key: np.asarray(value.detach().float()) for key, value in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kind in (("kmeans", KMeans), ("mini_batch_kmeans", MiniBatchKMeans)):
            model = kind(n_clusters=3, random_state=0, n_init=1).fit(points)
            joblib.dump(model, FOLDER / f"{name}.bin")
            numbers[f"centroids/{name}"] = model.cluster_centers_
    np.savez(FOLDER / "torch_files.npz", **numbers)


if __name__ == "__main__":
    main()
