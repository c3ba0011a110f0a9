"""Training: labelled windows in, a network with its lineage out; nothing here touches a database or a disk.

trained = train(Recipe(validation_groups=(5,)), windows, truth, groups, labels=("PEN", "ABD", ...), log=print)
blob = trained.to_bytes()                      # npz and JSON, no pickle
learnt, held_out = split(trained.recipe, samples)   # the same rows again: calibration and gate of the compiler
"""

import hashlib
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from converters.network import FEATURES, Dense, Network, array_json, extract, json_array
from converters.samples import Array, Samples, check_samples
from skerry.errors import Rejected
from skerry.runtimes.arrays import pack, unpack
from skerry.wire import codec

if TYPE_CHECKING:
    from control_plane.tree_training import TreeRecipe

KINDS = ("window-features-mlp", "trees")
FORMAT = "skerry-trained-1"
R = TypeVar("R", "Recipe", "TreeRecipe")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. Groups (wearers) in `validation_groups` are never learnt from: their rows gate the builds.

    When `validation_groups` is empty, `validation_share` of the groups, at least one, is drawn with `seed`.
    `hidden` are the widths of the hidden layers, `alpha` is the weight of the L2 penalty, `max_iter` the most epochs.
    """

    kind: str = KINDS[0]
    features: tuple[str, ...] = FEATURES
    channels: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (64, 32)
    seed: int = 1
    alpha: float = 0.01
    max_iter: int = 200
    validation_groups: tuple[int, ...] = ()
    validation_share: float = 0.14

    def __post_init__(self) -> None:
        if self.kind != KINDS[0]:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        check_shared(self)
        if not self.hidden or not all(1 <= width <= 1024 for width in self.hidden):
            raise ValueError(f"hidden: expected one or more widths from 1 to 1024, got {list(self.hidden)}")
        if not 1 <= self.max_iter <= 10_000 or self.alpha < 0:
            raise ValueError("expected max_iter from 1 to 10000 and alpha of 0 or more")


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A network with its lineage.

    `recipe` has `validation_groups` and `channels` filled in. `metrics`: rows learnt and held out, accuracy on both,
    and accuracy by held-out group. `lineage`: digest of the data, digest of the recipe, versions of the tools.
    """

    network: Network
    recipe: Recipe
    metrics: dict[str, Any]
    lineage: dict[str, str]

    def to_bytes(self) -> bytes:
        """Write a deterministic npz without pickle: the network's bytes and a JSON text of the rest."""
        text = {"format": FORMAT, "recipe": asdict(self.recipe), "metrics": self.metrics, "lineage": self.lineage}
        network = np.frombuffer(self.network.to_bytes(), dtype=np.uint8)
        return pack({"trained": json_array(text), "network": network})

    @staticmethod
    def from_bytes(data: bytes) -> "Trained":
        """Read what `to_bytes` wrote; raises `Rejected` on anything else."""
        arrays = unpack(data, what="trained model")
        try:
            text = array_json(arrays["trained"])
            if text["format"] != FORMAT:
                raise Rejected(f"trained model: expected the format {FORMAT}, got {text['format']!r}")
            return Trained(
                network=Network.from_bytes(arrays["network"].tobytes()),
                recipe=_recipe_of(Recipe, text["recipe"]),
                metrics=dict(text["metrics"]),
                lineage=dict(text["lineage"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Rejected(f"trained model: expected {FORMAT}, got an npz with {sorted(arrays)[:6]}") from error


def check_shared(recipe: "Recipe | TreeRecipe") -> None:
    """Raise `ValueError` unless the fields that recipes of every kind have are right."""
    features = recipe.features
    if not features or set(features) - set(FEATURES) or len(set(features)) != len(features):
        raise ValueError(f"features: expected distinct ones of {', '.join(FEATURES)}, got {list(features)}")
    if not 0 < recipe.validation_share < 1:
        raise ValueError(f"validation_share: expected a share between 0 and 1, got {recipe.validation_share}")
    if recipe.seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {recipe.seed}")


def recipe_from(tree: dict[str, Any]) -> "Recipe | TreeRecipe":
    """Return the recipe of a JSON object, defaults filled in; raises `Rejected` on unknown keys and wrong values."""
    from control_plane.tree_training import KIND, TreeRecipe

    return _recipe_of(TreeRecipe, tree) if tree.get("kind") == KIND else _recipe_of(Recipe, tree)


def _recipe_of(kind: type[R], tree: dict[str, Any]) -> R:
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(tree) - set(known))
    if unknown:
        # elsewhere an unknown key is a newer peer's; here it is a misspelt option that would silently do nothing
        raise Rejected(f"recipe: expected keys of {', '.join(known)}, got {', '.join(unknown)}")
    return codec.from_tree(kind, tree)


def split(recipe: "Recipe | TreeRecipe", samples: Samples, *, labels: Sequence[str] = ()) -> tuple[Samples, Samples]:
    """Return (learnt, held out): the rows of other groups, and those of the recipe's validation groups.

    Raises:
        Rejected: there are not two groups, or a validation group has no rows, or none would be left to learn from, or
            one of `labels` would have no row to learn from.
    """
    present = np.unique(samples.groups)
    chosen = np.asarray(validation_groups(recipe, present))
    missing = np.setdiff1d(chosen, present)
    if len(missing):
        raise Rejected(f"validation_groups: expected some of {present.tolist()}, got {missing.tolist()} without rows")
    held_out = np.isin(samples.groups, chosen)
    if held_out.all():
        raise Rejected(f"validation_groups: expected a group to learn from, got all of {present.tolist()} held out")
    learnt = samples.where(~held_out)
    absent = [name for index, name in enumerate(labels) if not np.any(learnt.truth == index)]
    if absent:
        raise Rejected(f"training data: expected rows of each label, got none to learn from of {', '.join(absent)}")
    return learnt, samples.where(held_out)


def train(
    recipe: Recipe,
    windows: Array,
    truth: Array,
    groups: Array,
    *,
    labels: Sequence[str],
    log: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train on every group but the held-out ones.

    Args:
        recipe: what to train and how.
        windows: float32 (n, T, C).
        truth: int (n,), indices into `labels`.
        groups: int (n,), such as wearers.
        labels: the names of the classes.
        log: is given one line per step.

    Raises:
        Rejected: the arrays do not fit each other or the labels, a label has no row to learn from, or the recipe's
            groups or channels are not those of the data.
    """
    names = tuple(labels)
    recipe, samples, learnt, held_out = prepare(recipe, windows, truth, groups, labels=names)
    log(f"training on {len(learnt)} windows of groups {np.unique(learnt.groups).tolist()}")
    pipeline = fit(recipe, learnt)
    network = network_of(pipeline, recipe=recipe, steps=samples.windows.shape[1], labels=names)
    metrics = metrics_of(lambda rows: network.forward(rows.windows).labels, learnt, held_out)
    held = f"held-out groups {list(recipe.validation_groups)}"
    log(f"{held}: accuracy {metrics['accuracy']:.3f} on {len(held_out)} windows")
    return Trained(network=network, recipe=recipe, metrics=metrics, lineage=lineage_of(recipe, samples))


def fit(recipe: Recipe, learnt: Samples) -> Any:
    """Return a fitted scikit-learn pipeline: our features, a scaler, a dense net."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    pipeline = make_pipeline(
        FunctionTransformer(extract, kw_args={"features": recipe.features}),
        StandardScaler(),
        MLPClassifier(recipe.hidden, random_state=recipe.seed, alpha=recipe.alpha, max_iter=recipe.max_iter),
    )
    with warnings.catch_warnings():
        # `max_iter` is the recipe's budget, and the held-out accuracy is what judges the outcome
        warnings.simplefilter("ignore", ConvergenceWarning)
        return pipeline.fit(learnt.windows, learnt.truth)


def network_of(pipeline: Any, *, recipe: Recipe, steps: int, labels: tuple[str, ...]) -> Network:
    """Return the network of a fitted pipeline."""
    scaler, net = pipeline[1], pipeline[2]
    layers = [
        Dense(weights=weights.astype(np.float32), bias=bias.astype(np.float32))
        for weights, bias in zip(net.coefs_, net.intercepts_, strict=True)
    ]
    if len(labels) == 2:
        # for two classes scikit-learn has one logistic unit; a softmax over (0, x) is the same function
        weights, bias = layers[-1].weights, layers[-1].bias
        layers[-1] = Dense(weights=np.hstack([0 * weights, weights]), bias=np.concatenate([0 * bias, bias]))
    return Network(
        steps=steps,
        channels=recipe.channels,
        features=recipe.features,
        mean=scaler.mean_.astype(np.float32),
        scale=scaler.scale_.astype(np.float32),
        layers=tuple(layers),
        labels=labels,
    )


def prepare(
    recipe: R, windows: Array, truth: Array, groups: Array, *, labels: Sequence[str]
) -> tuple[R, Samples, Samples, Samples]:
    """Return the recipe with its channels and held-out groups filled in, all samples, those to learn from, the others.

    Raises:
        Rejected: the arrays do not fit each other, the labels or the recipe.
    """
    samples = check_samples(windows, truth, groups, labels=len(labels), what="training data")
    channels = channel_names(recipe.channels, samples)
    held = validation_groups(recipe, np.unique(samples.groups))
    recipe = replace(recipe, channels=channels, validation_groups=held)
    learnt, held_out = split(recipe, samples, labels=labels)
    return recipe, samples, learnt, held_out


def validation_groups(recipe: "Recipe | TreeRecipe", present: Array) -> tuple[int, ...]:
    """Return the groups to hold out: those that the recipe names, or a share of those present, drawn with its seed."""
    if recipe.validation_groups:
        return recipe.validation_groups
    if len(present) < 2:
        raise Rejected(f"training data: expected two groups or more, one to hold out, got {present.tolist()}")
    count = min(max(1, round(recipe.validation_share * len(present))), len(present) - 1)
    drawn = np.random.default_rng(recipe.seed).permutation(present)[:count]
    return tuple(sorted(drawn.tolist()))


def channel_names(named: tuple[str, ...], samples: Samples) -> tuple[str, ...]:
    """Return the names of the channels of windows, numbered where a recipe names none."""
    width = samples.windows.shape[2]
    channels = named or tuple(f"axis{number}" for number in range(1, width + 1))
    if len(channels) != width or len(set(channels)) != width:
        raise Rejected(f"channels: expected {width} distinct names, got {list(channels)}")
    return channels


def metrics_of(labels_of: Callable[[Samples], Array], learnt: Samples, held_out: Samples) -> dict[str, Any]:
    """Return rows and accuracy of both halves, and accuracy by held-out group; `labels_of` is the model."""
    right = labels_of(held_out) == held_out.truth
    return {
        "rows_learnt": len(learnt),
        "rows_held_out": len(held_out),
        "accuracy_learnt": float(np.mean(labels_of(learnt) == learnt.truth)),
        "accuracy": float(right.mean()),
        "accuracy_by_group": {
            str(group): float(right[held_out.groups == group].mean()) for group in np.unique(held_out.groups)
        },
    }


def lineage_of(recipe: "Recipe | TreeRecipe", samples: Samples) -> dict[str, str]:
    """Return where a model comes from: digest of the data, digest of the recipe, versions of the tools."""
    import sklearn

    data = hashlib.sha256()
    for array in (samples.windows, samples.truth, samples.groups):
        data.update(str((array.dtype.str, array.shape)).encode() + array.tobytes())
    return {
        "data_sha256": data.hexdigest(),
        "recipe_sha256": hashlib.sha256(codec.encode(recipe)).hexdigest(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
