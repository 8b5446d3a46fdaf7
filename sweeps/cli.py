"""The ``isoflop`` command: picks the verb and gets out of its way."""

from __future__ import annotations

import importlib
import os
import sys

VERBS = {
    "run": "plan, submit, wait, fit and report: the one command to start with",
    "plan": "what a sweep will train, and what it will cost",
    "submit": "start workers for what is missing; return at once",
    "status": "what has become of every point",
    "suggest": "the points that would tell most next, by what is done",
    "cancel": "stop points, or take them back",
    "clean": "free the checkpoints of done points",
    "train": "one point, in this process",
    "fit": "the three Chinchilla approaches, from runs or from a CSV",
    "board": "the sweep as a live page in the browser",
    "sync": "hand runs to W&B that it does not have, from the disk",
    "export": "points as folders for Hugging Face's libraries",
    "sample": "text from a point",
    "data prepare": "text of your own as token shards",
    "data check": "whether token shards are what their header says",
    "predict": "compute-optimal size, tokens and loss from a fit or a published law",
}


def main() -> None:
    """Run ``isoflop VERB ...``."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-sc", "--shell-completion"):
        _complete()
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return
    words = 2 if " ".join(arguments[:2]) in VERBS else 1
    verb = " ".join(arguments[:words])
    if verb == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"isoflop {version('isoflop')}\n")
        return
    if verb not in VERBS:
        longer = [known for known in VERBS if known.startswith(f"{verb} ")]
        sys.stderr.write(f"isoflop: {verb!r} is no verb; choose one of {', '.join(longer or VERBS)}.\n")
        sys.exit(2)
    sys.argv = [f"isoflop {verb}", *arguments[words:]]
    try:
        importlib.import_module(f"sweeps.{verb.replace(' ', '_')}").main()
    except KeyboardInterrupt:  # while modules are still being imported
        sys.exit(130)


def _complete() -> None:
    """Tab completion: Hydra completes the verb's config once the verb is out of the line."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    two = " ".join(words[1:3]) in VERBS
    verb = " ".join(words[1:3]) if two else words[1] if len(words) > 1 else ""
    begun = " ".join(words[1:])
    if sys.argv[-1].startswith("query=") and (len(words) <= 2 or any(known.startswith(f"{verb} ") for known in VERBS)):
        done = begun.count(" ")
        fitting = [known.split(" ")[done] for known in VERBS if known.startswith(begun)]
        sys.stdout.write(" ".join(dict.fromkeys(fitting)))
        return
    if len(words) > 2:
        os.environ["COMP_LINE"] = " ".join([words[0], *words[3 if two else 2 :]])
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    module = verb.replace(" ", "_") if verb in VERBS else "plan"
    importlib.import_module(f"sweeps.{module}").main()


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "".join(f"  {verb:<{width}}  {what}\n" for verb, what in VERBS.items())
    return (
        "isoflop VERB [group=option] [key=value ...]\n\n"
        "Scaling-law experiments: FLOP budgets to refitted laws.\n\n"
        f"{verbs}\n"
        "isoflop VERB --help lists what the verb takes; --cfg job shows the values; --config-dir DIR adds your own.\n"
        'Tab completion: eval "$(isoflop -sc install=bash)"\n'
        "Exit codes: 0 done, 1 something failed, 2 the input is wrong, 130 interrupted.\n"
    )


if __name__ == "__main__":
    main()
