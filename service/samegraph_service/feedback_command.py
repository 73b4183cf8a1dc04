"""`samegraph feedback-key`: keys that sign prediction ids."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .errors import FeedbackKeyError
from .experiments.prediction_id import MAX_KEYS, new_key, read_keys


@click.group("feedback-key")
def feedback_key() -> None:
    """Make and look at the keys that sign prediction ids, so that feedback can be taken (docs/feedback.md)."""


@feedback_key.command(
    epilog="""\b
Examples:
  samegraph feedback-key new feedback.keys            a new file, mode 0600, with one key
  samegraph feedback-key new --append feedback.keys   one more key: accepted everywhere first, signing once moved up
  samegraph feedback-key new -                        to standard output, for a secret store
"""
)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--append", is_flag=True, help="Add the key as the last one of a file that is there.")
def new(file: str, append: bool) -> None:
    """Make a key and write it to FILE."""
    if file == "-":
        click.echo(new_key())
        return
    path = Path(file)
    try:
        if append:
            _append(path)
        else:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as written:
                written.write(f"{new_key()}\n")
    except FileExistsError:
        raise click.ClickException(f"{path} is there already; --append adds a key to it") from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
    except FeedbackKeyError as error:
        raise click.ClickException(str(error)) from error
    _show(path)


@feedback_key.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def show(file: Path) -> None:
    """Show the ids of the keys in FILE, never the keys, and which one signs."""
    try:
        _show(file)
    except FeedbackKeyError as error:
        raise click.ClickException(str(error)) from error


def _append(path: Path) -> None:
    if len(read_keys(path)) >= MAX_KEYS:
        raise click.ClickException(f"{path} holds {MAX_KEYS} keys, the most that are accepted; remove the oldest")
    ends_a_line = path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="ascii") as file:
        file.write(f"{'' if ends_a_line else chr(10)}{new_key()}\n")


def _show(path: Path) -> None:
    for i, key in enumerate(read_keys(path)):
        click.echo(f"{key.id.hex()}  {'signs' if i == 0 else 'accepted'}")
