"""`skerry model` and `skerry job`: training, models brought along, and builds with their gates."""

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

from control_plane.cli import samples as sample_verbs
from control_plane.cli.session import Session, read_bytes, read_text, say, table
from converters.gate_report import sticky_line
from skerry.errors import Rejected


def add_verbs(nouns: Any) -> None:
    """Add the verbs of models and jobs."""
    verbs = nouns.add_parser("model", help="models").add_subparsers(dest="verb", required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train a new version by a recipe")
    train.add_argument("model")
    train.add_argument("--data", required=True, metavar="DATASET")
    train.add_argument("--recipe", required=True, type=Path, metavar="FILE.toml")
    train.set_defaults(run=_train)

    import_ = verbs.add_parser("import", help="bring an ONNX or TFLite file along as a new version")
    import_.add_argument("file", type=Path)
    import_.add_argument("--data", required=True, type=Path, metavar="SAMPLES.npz", help="an array per input (or X), y")
    import_.add_argument("--dataset", default="", help="its gate parts hold a version against the one before")
    import_.add_argument("--name", default="", help="the model's name; the file's name without its ending if left out")
    import_.add_argument("--labels", default="", metavar="A,B,C", help="the classes, in the order of the probabilities")
    import_.add_argument("--probabilities", default="", metavar="OUTPUT", help="the output whose argmax is the label")
    import_.add_argument("--features", default="", metavar="OUTPUT", help="the output to monitor")
    import_.add_argument("--boundary", default="", metavar="TENSOR", help="where float preprocessing ends")
    import_.add_argument("--shape", action="append", default=[], dest="shapes", metavar="INPUT=1,16,7")
    import_.set_defaults(run=_import)

    compile_ = verbs.add_parser("compile", help="build and gate a version for profiles")
    compile_.add_argument("model")
    compile_.add_argument("version", type=int)
    compile_.add_argument("--profile", action="append", required=True, dest="profiles", metavar="PROFILE")
    compile_.add_argument("--seconds", type=float, metavar="S", help="time for the search, for each profile")
    compile_.set_defaults(run=_compile)

    verbs.add_parser("list", help="all versions").set_defaults(run=_list)

    show = verbs.add_parser("show", help="a version with its builds and their gates")
    show.add_argument("model")
    show.add_argument("version", type=int)
    show.set_defaults(run=_show)

    policy = verbs.add_parser("policy", help="who signs its releases: the offline keys, or a key that they granted")
    policy.add_argument("model")
    policy.add_argument("policy", nargs="?", choices=("manual", "automatic"), help="leave it out to see it")
    policy.set_defaults(run=_policy)

    sample_verbs.add_model_verb(verbs)

    check = verbs.add_parser("check", help="is this file a model that the profile's runtime loads?")
    check.add_argument("file", type=Path)
    check.add_argument("--profile", required=True)
    check.set_defaults(run=_check)

    verbs = nouns.add_parser("job", help="long work").add_subparsers(dest="verb", required=True, metavar="VERB")
    job = verbs.add_parser("show", help="a job with its log")
    job.add_argument("job", type=int)
    job.set_defaults(run=_job)


def _train(options: argparse.Namespace, session: Session) -> None:
    try:
        recipe = tomllib.loads(read_text(options.recipe))
    except tomllib.TOMLDecodeError as error:
        raise Rejected(f"{options.recipe}: expected TOML, got an error: {error}") from error
    with session.client() as client:
        job = client.train(options.model, dataset=options.data, recipe=recipe)
        done = client.wait_for_job(job["id"], on_log=None if session.as_json else say)
    result = done["result"]
    session.show(done, f"trained {options.model} version {result['version']}")


def _import(options: argparse.Namespace, session: Session) -> None:
    file, samples = read_bytes(options.file), read_bytes(options.data)
    name = options.name or re.sub(r"[^a-z0-9-]+", "-", options.file.stem.lower()).strip("-")
    texts = {key: getattr(options, key) for key in ("probabilities", "features", "boundary") if getattr(options, key)}
    labels = {"labels": [label.strip() for label in options.labels.split(",")]} if options.labels else {}
    shapes = {"shapes": dict(_shape(text) for text in options.shapes)} if options.shapes else {}
    with session.client() as client:
        job = client.import_model(name, file, samples, options={**labels, **texts, **shapes}, dataset=options.dataset)
        done = client.wait_for_job(job["id"], on_log=None if session.as_json else say)
    session.show(done, f"imported {name} version {done['result']['version']}")


def _shape(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.rpartition("=")
    if not name or not all(size.strip().isdigit() for size in sizes.split(",")):
        raise Rejected(f"--shape: expected INPUT=1,16,7, got {text!r}")
    return name, [int(size) for size in sizes.split(",")]


def _compile(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        job = client.compile(options.model, options.version, profiles=options.profiles, budget_s=options.seconds)
        client.wait_for_job(job["id"], on_log=None if session.as_json else say)
        model = client.model(options.model, options.version)
    session.show(model, _builds(model))
    refused = [build["profile"] for build in model["builds"] if build["gate"] != "passed"]
    if refused:
        raise Rejected(f"{options.model} {options.version}: expected every gate passed, got {', '.join(refused)} not")


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        models = client.models()
    columns = ("model", "version", "dataset", "trained_at")
    session.show(models, table(models, columns, empty="no models yet: skerry model train NAME ..."))


def _show(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        model = client.model(options.model, options.version)
    session.show(model, _builds(model))


def _builds(model: dict[str, Any]) -> str:
    rows = [
        {
            "profile": build["profile"],
            "gate": build["gate"],
            "candidate": candidate["name"],
            "chosen": "chosen" if candidate["name"] == build["report"].get("chosen") else "",
            **{key: candidate.get(key) for key in ("size_bytes", "accuracy", "agreement")},
            "why not": "; ".join(candidate.get("reasons", ())),
        }
        for build in model["builds"]
        for candidate in build["report"].get("candidates", ())
    ]
    columns = ("profile", "gate", "candidate", "chosen", "size_bytes", "accuracy", "agreement", "why not")
    sticky = [
        f"{build['profile']} {candidate['name']}: {sticky_line(candidate.get('sticky'))}"
        for build in model["builds"]
        for candidate in build["report"].get("candidates", ())
        if candidate.get("sticky")
    ]
    text = table(rows, columns, empty="no builds yet: skerry model compile NAME VERSION --profile PROFILE")
    return "\n".join([text, *sticky])


def _policy(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        if options.policy:
            answer = client.set_model_policy(options.model, options.policy)
        else:
            answer = client.model_policy(options.model)
    session.show(answer, f"releases of {options.model} are signed: {answer['policy']}")


def _check(options: argparse.Namespace, session: Session) -> None:
    from converters.checks import check_model_file
    from firmware_profiles import load_profile

    profile = load_profile(options.profile)
    data = read_bytes(options.file)
    found = check_model_file(data, profile)
    session.show({"file": str(options.file), "format": found}, f"{options.file}: {found}, accepted for {profile.name}")


def _job(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        job = client.job(options.job)
    tail = f"\nerror: {job['error']}" if job["error"] else ""
    session.show(job, f"job {job['id']} {job['kind']}: {job['state']}\n{job['log']}{tail}".rstrip())
