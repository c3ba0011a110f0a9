"""Training of tree ensembles over the features of windows: forests and boosters of scikit-learn, boosters of LightGBM.

    bundle = train_trees(TreeRecipe(validation_groups=(5,)), windows, truth, groups, labels=("PEN", "ABD", ...))

Features are computed by the model itself, as those of `control_plane.training`, so that raw windows are what it takes.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from control_plane.bundles import Bundle
from control_plane.training import check_shared, lineage_of, metrics_of, prepare
from converters.network import FEATURES, extract
from converters.samples import Array, Samples
from converters.trees import WindowFeatures, from_trees
from skerry.errors import Broken

KIND = "trees"
ENSEMBLES = ("random-forest", "gradient-boosting", "lightgbm")


@dataclass(frozen=True, slots=True)
class TreeRecipe:
    """How to train an ensemble: which one, of how many `trees` (per class, for boosters), each of at most `depth`.

    The rest is as in `control_plane.training.Recipe`. `rate` is the learning rate of boosters.
    """

    kind: str = KIND
    ensemble: str = ENSEMBLES[0]
    trees: int = 50
    depth: int = 8
    rate: float = 0.1
    features: tuple[str, ...] = FEATURES
    channels: tuple[str, ...] = ()
    seed: int = 1
    validation_groups: tuple[int, ...] = ()
    validation_share: float = 0.14

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"ensemble: expected one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}")
        if not 1 <= self.trees <= 2000 or not 1 <= self.depth <= 32:
            raise ValueError(f"expected 1 to 2000 trees of depth 1 to 32, got {self.trees} of {self.depth}")
        check_shared(self)
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: expected one above 0 and up to 1, got {self.rate}")


def train_trees(
    recipe: TreeRecipe,
    windows: Array,
    truth: Array,
    groups: Array,
    *,
    labels: Sequence[str],
    log: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Train on every group but the held-out ones; arguments and refusals as those of `control_plane.training.train`.

    Raises:
        Broken: the recipe asks for LightGBM, which is not installed.
    """
    names = tuple(labels)
    recipe, samples, learnt, held_out = prepare(recipe, windows, truth, groups, labels=names)
    log(f"training {recipe.ensemble} on {len(learnt)} windows of groups {np.unique(learnt.groups).tolist()}")
    model = fit_trees(recipe, learnt)
    metrics = metrics_of(lambda rows: _labels(model, recipe, rows), learnt, held_out)
    held = f"held-out groups {list(recipe.validation_groups)}"
    log(f"{held}: accuracy {metrics['accuracy']:.3f} on {len(held_out)} windows")
    window = WindowFeatures(steps=samples.windows.shape[1], channels=recipe.channels, features=recipe.features)
    lineage = lineage_of(recipe, samples)
    if recipe.ensemble == "lightgbm":
        lineage["lightgbm"] = version("lightgbm")
    return Bundle(
        source=from_trees(model, labels=names, window=window),
        recipe=json.loads(json.dumps(asdict(recipe))),
        metrics=metrics,
        lineage=lineage,
    )


def fit_trees(recipe: TreeRecipe, learnt: Samples) -> Any:
    """Return the fitted estimator over the features of windows."""
    columns = extract(learnt.windows, recipe.features).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # LightGBM names columns itself and then warns of it
        return _estimator(recipe).fit(columns, learnt.truth)


def _estimator(recipe: TreeRecipe) -> Any:
    if recipe.ensemble == "random-forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(recipe.trees, max_depth=recipe.depth, random_state=recipe.seed, n_jobs=1)
    if recipe.ensemble == "gradient-boosting":
        from sklearn.ensemble import GradientBoostingClassifier

        return GradientBoostingClassifier(
            n_estimators=recipe.trees,
            max_depth=recipe.depth,
            learning_rate=recipe.rate,
            random_state=recipe.seed,
        )
    if find_spec("lightgbm") is None:
        raise Broken("recipe: expected LightGBM for the ensemble lightgbm, got none: pip install lightgbm")
    from lightgbm import LGBMClassifier

    return LGBMClassifier(
        n_estimators=recipe.trees,
        max_depth=recipe.depth,
        learning_rate=recipe.rate,
        random_state=recipe.seed,
        deterministic=True,
        force_row_wise=True,
        n_jobs=1,
        verbose=-1,
    )


def _labels(model: Any, recipe: TreeRecipe, samples: Samples) -> Array:
    columns = extract(samples.windows, recipe.features).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above
        return np.asarray(model.predict(columns))
